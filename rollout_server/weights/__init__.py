"""The weight transaction, seen from the server."""
