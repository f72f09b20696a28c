"""Which records and which channel each optimizer step takes."""
