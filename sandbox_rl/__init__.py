"""Reinforcement learning of language models inside code sandboxes.

Importing the package does nothing but define names: no torch, no files, no logging set-up.
"""

__version__ = "0.1.0"
