"""Step reports, sinks, pictures and the HTML report."""
