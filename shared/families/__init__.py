"""What both processes know of each family of models, without loading one."""
