"""Scores of decoded answers."""
