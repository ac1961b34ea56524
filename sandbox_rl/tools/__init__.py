"""The three tools of LLM-in-Sandbox. `base` holds the Protocol that the episode knows."""
