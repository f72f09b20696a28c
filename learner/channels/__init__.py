"""The kinds of optimizer step: what each teaches and what it minimises."""
