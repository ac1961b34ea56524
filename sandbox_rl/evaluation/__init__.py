"""How well a policy does on tasks: with a sandbox, without one, and the difference between the two."""

from sandbox_rl.evaluation.summary import Evaluation, evaluation_requests, summarise

__all__ = ["Evaluation", "evaluation_requests", "summarise"]
