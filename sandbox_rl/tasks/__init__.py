"""From rows of data to validated tasks, and from tasks to prompts."""
