"""Fonts for labels in pictures, and the one that travels along."""
