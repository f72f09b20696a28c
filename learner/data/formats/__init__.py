"""Readers of annotations, one file a format: each finds what is its own in a folder, and yields annotated images."""
