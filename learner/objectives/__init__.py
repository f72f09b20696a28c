"""What each channel minimises."""
