"""Did the weights move as the optimizer meant them to?

A sample of every group of parameters is looked at before and after each update, and beside it what Adam's
own state says the update should have been, in float32. Weights that are too coarse for their updates show at
the first step: what was applied is then a small part of what was computed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sandbox_rl.audit.alarms import Alarm, AlarmName, Alarms

__all__ = ["GroupUpdate", "UpdateAudit", "parameter_group"]

PER_TENSOR = 256
"""Entries of a tensor that are looked at."""

PER_GROUP = 64
"""Tensors of a group that are looked at, evenly spaced: a bound for models with thousands."""

STEADY = 0.01
"""Entries whose normalised gradient is smaller than this had no gradient worth the name (rows of an
embedding that were not used); of them nothing is expected."""

LOST = 0.5
"""Alarm when less than this part of the computed update was applied, or of the entries has moved."""

STILL_STEPS = 3
"""Updates in a row that trained on tokens and moved nothing; a warm-up starts at rate 0, so one happens."""

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
class _Sampled:
    group: str
    parameter: torch.nn.Parameter
    index: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Part:
    """The sampled entries of one tensor; tensors of shape (N,). `update` says something only if `known`."""

    before: torch.Tensor
    change: torch.Tensor
    update: torch.Tensor
    expected: torch.Tensor
    known: bool


class UpdateAudit(TrainerCallback):  # type: ignore[misc]
    """Looks at every optimizer step; costs some thousand entries, whatever the size of the model.

    Sharded parameters are looked at where they lie: each process sees its own part. Under DeepSpeed, which
    keeps the weights that it updates to itself, nothing is looked at and nothing is reported.

    Args:
        trained: how many tokens had a gradient so far; what it grows by is what an update has to learn from.
    """

    def __init__(self, alarms: Alarms, trained: Callable[[], int] = lambda: 0) -> None:
        self._alarms = alarms
        self._trained = trained
        self._trained_before = 0
        self._still = 0
        self._after: list[torch.Tensor] = []
        self._sampled: tuple[_Sampled, ...] = ()
        self._before: list[torch.Tensor] = []
        self._gradients: list[torch.Tensor | None] = []
        self._metrics: dict[str, float] = {}

    def take(self) -> dict[str, float]:
        """`update/…` of the last step: changed, applied, and changed and relative by group."""
        metrics, self._metrics = self._metrics, {}
        return metrics

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Choose the entries."""
        if getattr(args, "deepspeed_plugin", None) is None:
            self._sampled = _choose(model.named_parameters())

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep what is there before the update."""
        with torch.no_grad():
            self._before = [_entries(s.parameter, s.index) for s in self._sampled]
            if self._after and not _same(self._after, self._before):
                self._sound(
                    int(state.global_step) + 1,
                    AlarmName.WEIGHTS_CHANGED,
                    "the weights are not those that the last update left; something besides the optimizer "
                    "writes to them, so what was learned may be gone",
                )
            self._gradients = [
                None if s.parameter.grad is None else _entries(s.parameter.grad, s.index)
                for s in self._sampled
            ]

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Compare."""
        if not self._before or getattr(optimizer, "step_was_skipped", False):
            return
        step = int(state.global_step) + 1
        with torch.no_grad():
            inner = getattr(optimizer, "optimizer", optimizer)
            updates = self._compare(inner)
            total = sum(update.expected for update in updates.values())
            self._after = [_entries(s.parameter, s.index) for s in self._sampled]
            self._look_for_movement(inner, step, expected=total > 0, alone=args.world_size == 1)
        self._before, self._gradients = [], []
        if not total:
            return
        self._metrics = {
            "update/changed": sum(u.changed * u.expected for u in updates.values()) / total,
            **{f"update/changed_{name}": u.changed for name, u in updates.items()},
            **{f"update/relative_{name}": u.relative for name, u in updates.items()},
        }
        known = {name: u for name, u in updates.items() if not math.isnan(u.applied)}
        if known:
            self._metrics["update/applied"] = min(u.applied for u in known.values())
        self._judge(updates, step)

    def _look_for_movement(
        self, optimizer: torch.optim.Optimizer, step: int, *, expected: bool, alone: bool
    ) -> None:
        """Weights that stay while there was something to learn, weights that nobody updates, and NaN.

        Sharding may put other tensors into the optimizer, so only a process alone is asked for its weights.
        """
        gradients = [gradient for gradient in self._gradients if gradient is not None]
        if not all(bool(values.isfinite().all()) for values in (*gradients, *self._after)):
            self._sound(
                step,
                AlarmName.NOT_FINITE,
                "gradients or weights are NaN or infinite, and every later update keeps them so; go back to "
                "the last checkpoint with a lower grpo.learning_rate, or in float32",
            )
            return
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = sum(id(s.parameter) not in held for s in self._sampled)
        learning = self._trained() > self._trained_before
        self._trained_before = self._trained()
        dead = not any(bool(gradient.any()) for gradient in gradients)
        moved = expected and not _same(self._before, self._after)
        self._still = self._still + 1 if learning and (dead or not moved) else 0
        cause = None
        if alone and missing:
            cause = f"{missing} of {len(self._sampled)} trainable tensors are not in the optimizer"
        elif self._still >= STILL_STEPS and dead:
            cause = (
                f"no gradient has reached the weights in {self._still} updates that had tokens to train on"
            )
        elif self._still >= STILL_STEPS:
            rate = max(float(group["lr"]) for group in optimizer.param_groups)
            cause = (
                f"{self._still} updates had gradients and moved no weight worth the name (learning rate "
                f"{rate:g}; grpo.max_grad_norm may be too small)"
            )
        if cause:
            self._sound(step, AlarmName.NO_UPDATE, f"{cause}; nothing is learned there")

    def _sound(self, step: int, name: AlarmName, detail: str) -> None:
        self._alarms.sound(Alarm(step, name, detail))

    def _judge(self, updates: Mapping[str, GroupUpdate], step: int) -> None:
        lost = {name: u for name, u in updates.items() if u.changed < LOST or u.applied < LOST}
        if lost:
            dtypes = sorted({str(s.parameter.dtype).removeprefix("torch.") for s in self._sampled})
            said = ", ".join(f"{name} {u.changed:.0%} moved" for name, u in sorted(lost.items()))
            self._sound(
                step,
                AlarmName.UPDATES_VANISH,
                f"the update is lost in the rounding of the weights ({said}; they are "
                f"{' and '.join(dtypes)}); keep float32 weights, or raise grpo.learning_rate",
            )

    def _compare(self, optimizer: torch.optim.Optimizer) -> dict[str, GroupUpdate]:
        settings = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        found: dict[str, list[_Part]] = defaultdict(list)
        for sampled, before, gradient in zip(self._sampled, self._before, self._gradients, strict=True):
            group = settings.get(id(sampled.parameter))
            if group is None or group["lr"] == 0:
                continue
            state = optimizer.state.get(sampled.parameter, {})
            after = _entries(sampled.parameter, sampled.index)
            meant = _adam_update(state, group, before, sampled.index)
            if meant is not None:
                update, expected = meant
                found[sampled.group].append(_Part(before, after - before, update, expected, known=True))
            elif gradient is not None:
                found[sampled.group].append(
                    _Part(before, after - before, gradient, gradient != 0, known=False)
                )
        updates = {name: _summary(parts) for name, parts in sorted(found.items())}
        return {name: update for name, update in updates.items() if update.expected}


def _choose(named: Iterable[tuple[str, torch.nn.Parameter]]) -> tuple[_Sampled, ...]:
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
            chosen.append(_Sampled(group, parameter, index))
    return tuple(chosen)


def _same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor."""
    to_local = getattr(tensor, "to_local", None)
    return to_local() if to_local is not None else tensor


def _entries(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """A copy of the chosen entries, float32, shape (N,)."""
    local = _local(tensor)
    return local.reshape(-1)[index.to(local.device)].float()


def _adam_update(
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
    mean = _entries(first, index) / (1 - beta1**count)
    deviation = (_entries(second, index) / (1 - beta2**count)).sqrt() + group.get("eps", 1e-8)
    direction = mean / deviation
    decay = group.get("weight_decay", 0.0)
    return -group["lr"] * (direction + decay * before), direction.abs() > STEADY


def _summary(parts: Sequence[_Part]) -> GroupUpdate:
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
