"""A training run: what it starts from, what it stands on while it trains, what is left of it on the disk."""
