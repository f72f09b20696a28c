"""What is particular to each family of models, and loading one to be trained."""
