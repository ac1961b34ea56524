"""A run as people look at it: a page, a file of it, the terminal, and files that other tools open."""
