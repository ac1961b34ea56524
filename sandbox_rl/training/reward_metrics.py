"""Reward metrics of what was scored, where TRL logs what it was handed.

The leave-one-out factor is applied to the rewards that TRL centres (`estimator`), so TRL's own figures
are n/(n−1) times too large. Nothing that is trained on is touched here.
"""

from __future__ import annotations

from collections.abc import MutableMapping, MutableSequence
from typing import Any

import torch
from trl.trainer.utils import nanstd

__all__ = ["correct_reward_metrics", "outcomes_of"]


def correct_reward_metrics(
    metrics: MutableMapping[str, MutableSequence[float]],
    logged: MutableSequence[float],
    outcomes: torch.Tensor,
    *,
    name: str,
    group_size: int,
) -> None:
    """Replace the newest reward figures by those of `outcomes`.

    Args:
        metrics: TRL's lists; the last entry of each is of these rows.
        logged: the reward column of TRL's table of completions; its last rows are these.
        outcomes: the scored rewards of all processes' rows, NaN where there is none, shape (N,).
        name: of the reward function.
    """
    mean, deviation = torch.nanmean(outcomes).item(), nanstd(outcomes).item()
    of_groups = nanstd(outcomes.view(-1, group_size), dim=1)
    equal = torch.isclose(of_groups, torch.zeros_like(of_groups)).float().mean().item()
    found = {
        "reward": mean,
        "reward_std": deviation,
        "frac_reward_zero_std": equal,
        f"rewards/{name}/mean": mean,
        f"rewards/{name}/std": deviation,
    }
    for key, value in found.items():
        metrics[key][-1] = value
    rows = min(len(logged), len(outcomes))
    for place, value in enumerate(outcomes[len(outcomes) - rows :].tolist(), len(logged) - rows):
        logged[place] = value


def outcomes_of(inputs: list[dict[str, Any]]) -> list[float] | None:
    """The scored rewards of a process's rows, NaN for None; None where the rollouts do not tell them."""
    if not inputs or "outcome" not in inputs[0]:
        return None
    return [float("nan") if row["outcome"] is None else float(row["outcome"]) for row in inputs]
