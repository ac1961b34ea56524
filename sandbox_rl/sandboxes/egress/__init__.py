"""The egress proxy: the only way out for a sandbox that has a network."""
