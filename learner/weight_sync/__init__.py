"""The learner's side of publishing weights."""
