"""Loading, building and running the vision-language model."""
