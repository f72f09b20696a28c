"""Process 1: a FastAPI service around a decoding engine."""
