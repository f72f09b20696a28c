"""What the two processes must agree on: wire, config, errors, health, metrics."""
