"""The baselines, written the way people usually write them."""
