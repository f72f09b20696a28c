"""What is particular to each family of models when transformers decodes it."""
