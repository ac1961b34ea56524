"""A sample of the entries of every group of parameters, and what Adam's state says of their update."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

PER_TENSOR = 256
"""Entries of a tensor that are looked at."""

PER_GROUP = 64
"""Tensors of a group that are looked at, evenly spaced: a bound for models with thousands."""

STEADY = 0.01
"""Entries whose normalised gradient is smaller than this had next to no gradient (rows of an
embedding that were not used); of them nothing is expected."""

_GROUPS = (
    ("adapter", ("lora_", "adapter", "prompt_encoder")),
    ("embedding", ("embed", "wte", "wpe", "lm_head")),
    ("norm", ("norm", "ln_", "layernorm")),
    ("attention", ("attn", "attention", "mixer", "ssm")),
    ("mlp", ("mlp", "expert", "feed_forward", "ffn", "fc")),
)


def parameter_group(name: str) -> str:
    """`adapter`, `embedding`, `norm`, `attention`, `mlp` or `other`, by a parameter's name."""
    lowered = name.lower()
    return next((group for group, parts in _GROUPS if any(part in lowered for part in parts)), "other")


@dataclass(frozen=True, slots=True)
class GroupUpdate:
    """What one update did to the sampled entries of a group.

    Args:
        expected: entries that the optimizer meant to move.
        changed: the part of them that moved.
        relative: median of |change| / |weight| over them.
        applied: <change, computed> / <computed, computed>: 1 where the update arrived, 0 where rounding
            took it; NaN where the optimizer's state does not tell what was computed.
    """

    expected: int
    changed: float
    relative: float
    applied: float


@dataclass(frozen=True, slots=True)
class Sampled:
    """Entries of one tensor that are looked at; `index` into this process's part, flat, shape (N,)."""

    group: str
    parameter: torch.nn.Parameter
    index: torch.Tensor

    def weights(self) -> torch.Tensor:
        """Shape (N,), as all that is said of the entries: a copy in float32."""
        return entries_of(self.parameter, self.index)

    def gradient(self) -> torch.Tensor | None:
        """None where there is none."""
        return None if self.parameter.grad is None else entries_of(self.parameter.grad, self.index)

    def moment(self, optimizer: torch.optim.Optimizer) -> torch.Tensor | None:
        """Adam's running mean of the gradients; None where there is none yet."""
        moment = optimizer.state.get(self.parameter, {}).get("exp_avg")
        return None if moment is None else entries_of(moment, self.index)


@dataclass(frozen=True, slots=True)
class Part:
    """The sampled entries of one tensor; tensors of shape (N,). `update` says something only if `known`."""

    before: torch.Tensor
    change: torch.Tensor
    update: torch.Tensor
    expected: torch.Tensor
    known: bool


def trained_parameters(model: torch.nn.Module) -> tuple[tuple[str, torch.nn.Parameter], ...]:
    """What a run should train: the adapters, or without any all weights but fixed tables of positions."""
    named = [(name, p) for name, p in model.named_parameters() if p.is_floating_point()]
    adapters = [(name, p) for name, p in named if "lora_" in name]
    return tuple(adapters or [(name, p) for name, p in named if "position" not in name.lower()])


def choose(named: Iterable[tuple[str, torch.nn.Parameter]]) -> tuple[Sampled, ...]:
    """The entries that are looked at; of a sharded tensor some of this process's part."""
    groups: dict[str, list[torch.nn.Parameter]] = defaultdict(list)
    for name, parameter in named:
        if parameter.requires_grad and _local(parameter).numel():
            groups[parameter_group(name)].append(parameter)
    chosen = []
    for group, parameters in groups.items():
        step = -(-len(parameters) // PER_GROUP)
        for parameter in parameters[::step]:
            local = _local(parameter)
            count = min(PER_TENSOR, local.numel())
            # Evenly spaced with a stride that is no multiple of a row: not one column only.
            index = torch.arange(count, device=local.device) * max(1, local.numel() // count)
            index = (index + torch.arange(count, device=local.device)) % local.numel()
            chosen.append(Sampled(group, parameter, index))
    return tuple(chosen)


def same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    """Whether all entries are equal, bit by bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor."""
    to_local = getattr(tensor, "to_local", None)
    return to_local() if to_local is not None else tensor


def entries_of(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """A copy of the chosen entries, float32, shape (N,)."""
    local = _local(tensor)
    return local.reshape(-1)[index.to(local.device)].float()


def adam_update(
    state: Mapping[str, Any], group: Mapping[str, Any], before: torch.Tensor, index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What AdamW (arXiv 1711.05101, algorithm 2) has computed, from its state after the step.

    Returns:
        The update and which entries it should move, shape (N,) each; None for another optimizer.
    """
    first, second, step = state.get("exp_avg"), state.get("exp_avg_sq"), state.get("step")
    if first is None or second is None or step is None or "betas" not in group:
        return None
    beta1, beta2 = group["betas"]
    count = float(step)
    mean = entries_of(first, index) / (1 - beta1**count)
    deviation = (entries_of(second, index) / (1 - beta2**count)).sqrt() + group.get("eps", 1e-8)
    direction = mean / deviation
    decay = group.get("weight_decay", 0.0)
    return -group["lr"] * (direction + decay * before), direction.abs() > STEADY


def summary(parts: Sequence[Part]) -> GroupUpdate:
    """What an update did to the sampled entries of a group."""
    expected = torch.cat([part.expected for part in parts])
    before = torch.cat([part.before for part in parts])[expected]
    change = torch.cat([part.change for part in parts])[expected]
    update = torch.cat([part.update for part in parts])[expected]
    if not before.numel():
        return GroupUpdate(0, 0.0, 0.0, math.nan)
    whole = float((update * update).sum())
    told = all(part.known for part in parts) and whole > 0
    return GroupUpdate(
        expected=before.numel(),
        changed=float((change != 0).float().mean()),
        relative=float((change.abs() / before.abs().clamp(min=1e-12)).median()),
        applied=float((change * update).sum()) / whole if told else math.nan,
    )
