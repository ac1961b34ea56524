"""What can be wrong with a recipe, its data or the machine, found before anything that takes long."""
