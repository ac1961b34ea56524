"""Whatever produces tokens. `base` holds the Protocols that the rest of the code knows."""
