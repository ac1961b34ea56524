"""Making context tasks from rows of context, question and answer, the way of LLM-in-Sandbox-RL."""
