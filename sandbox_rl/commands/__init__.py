"""What the command line does: a recipe becomes objects, a run, a result. Knows no terminal."""
