"""The only room that speaks HTTP to rollout servers."""
