"""The commands: arguments are read, something is built and run, and its result is shown."""
