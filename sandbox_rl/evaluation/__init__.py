"""How well a policy does on tasks: with a sandbox, without one, and the difference between the two."""
