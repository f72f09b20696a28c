"""Decoding by transformers, with a continuous batch of our own."""
