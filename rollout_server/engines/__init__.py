"""Decoding engines behind one protocol."""
