"""Scorers: pure functions of (answer text, task), run in killable processes by `rewards.pool`."""
