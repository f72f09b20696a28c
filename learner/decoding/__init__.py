"""Answers for the steps that learn from them, decoded by all servers together."""
