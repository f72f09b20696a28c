"""From targets to packs to tensors."""
