"""The pure detection core: record, parse, match, target."""
