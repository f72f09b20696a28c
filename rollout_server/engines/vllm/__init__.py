"""Decoding by vLLM."""
