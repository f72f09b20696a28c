"""The client side of decoding."""
