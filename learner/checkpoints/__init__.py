"""Checkpoints: written, found again, exported."""
