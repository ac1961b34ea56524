"""A reward that even a hardly trained policy gets sometimes: groups whose rewards differ are what trains."""

from sandbox_rl.types import Task


def even(answer: str, task: Task) -> float:
    """1 for an answer whose bytes add up to an even number."""
    return float(sum(answer.encode()) % 2 == 0)
