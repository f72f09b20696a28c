"""The composition root: command line, supervisor and demo."""
