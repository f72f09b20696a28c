"""Predictions for pictures that nobody has annotated: `python -m learner.prediction`."""
