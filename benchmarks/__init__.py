"""Measured ratios against named baselines; each module is a command."""
