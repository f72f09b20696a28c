"""The strict configuration models, their loader and every cross-field check."""
