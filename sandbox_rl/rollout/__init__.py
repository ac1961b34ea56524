"""Many episodes at once: the engine, its settings, and which groups a step trains on."""
