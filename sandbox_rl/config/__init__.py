"""Recipes: YAML on disk, dotted overrides on the command line, a frozen `Recipe` in the program."""
