"""Did the weights move as the optimizer meant them to?

A sample of every group of parameters is looked at before and after each update, and beside it what Adam's
own state says the update should have been, in float32. Weights that are too coarse for their updates show at
the first step: what was applied is then a small part of what was computed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState, TrainingArguments

from sandbox_rl.audit.alarms import AlarmName, Alarms
from sandbox_rl.audit.entries import (
    GroupUpdate,
    Part,
    Sampled,
    adam_update,
    choose,
    same,
    summary,
    trained_parameters,
)

LOST = 0.5
"""Alarm when less than this part of the computed update was applied, or of the entries has moved."""

STILL_STEPS = 3
"""Updates in a row that trained on tokens and moved nothing; a warm-up starts at rate 0, so one happens."""


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
        self._moments: list[torch.Tensor | None] = []
        self._due: tuple[tuple[str, torch.nn.Parameter], ...] = ()
        self._sampled: tuple[Sampled, ...] = ()
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
        state: object,
        control: object,
        *,
        model: torch.nn.Module,
        **kwargs: Any,
    ) -> None:
        """Choose the entries."""
        if getattr(args, "deepspeed_plugin", None) is None:
            self._sampled = choose(model.named_parameters())
            self._due = trained_parameters(model)

    def on_pre_optimizer_step(
        self,
        args: object,
        state: TrainerState,
        control: object,
        *,
        optimizer: torch.optim.Optimizer,
        **kwargs: Any,
    ) -> None:
        """Keep what is there before the update, and see whether it is what the last one left."""
        step = int(state.global_step) + 1
        with torch.no_grad():
            self._before = [sampled.weights() for sampled in self._sampled]
            if self._after and not same(self._after, self._before):
                self._alarms.sound(
                    step,
                    AlarmName.WEIGHTS_CHANGED,
                    "the weights are not those that the last update left; something besides the optimizer "
                    "writes to them, so what was learned may be gone",
                )
            self._look_at_memory(getattr(optimizer, "optimizer", optimizer), step)
            self._gradients = [sampled.gradient() for sampled in self._sampled]
        self._look_for_frozen(step)

    def _look_at_memory(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Whether Adam's moments are those that the last update left, or a checkpoint held."""
        now = [sampled.moment(optimizer) for sampled in self._sampled]
        if self._moments:
            lost = any(
                was is not None and (here is None or not torch.equal(was, here))
                for was, here in zip(self._moments, now, strict=True)
            )
        else:  # the first update of this process
            lost = step > 1 and not optimizer.state
        if lost:
            self._alarms.sound(
                step,
                AlarmName.OPTIMIZER_CHANGED,
                f"before update {step} the optimizer does not hold what the update before left: its moments "
                "were cleared or rewritten, and its steps are others than they should be",
            )

    def _look_for_frozen(self, step: int) -> None:
        frozen = [(name, parameter) for name, parameter in self._due if not parameter.requires_grad]
        if frozen:
            share = sum(p.numel() for _, p in frozen) / sum(p.numel() for _, p in self._due)
            self._alarms.sound(
                step,
                AlarmName.FROZEN,
                f"{len(frozen)} of {len(self._due)} tensors that a run trains ({share:.0%} of those weights, "
                f"{frozen[0][0]} the first) take no gradient; nothing is learned there",
            )

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: object,
        *,
        optimizer: torch.optim.Optimizer,
        **kwargs: Any,
    ) -> None:
        """Compare."""
        if not self._before or getattr(optimizer, "step_was_skipped", False):
            return
        step = int(state.global_step) + 1
        with torch.no_grad():
            inner = getattr(optimizer, "optimizer", optimizer)
            self._after = [sampled.weights() for sampled in self._sampled]
            self._moments = [sampled.moment(inner) for sampled in self._sampled]
            updates = self._compare(inner)
            total = sum(update.expected for update in updates.values())
            self._look_for_movement(inner, step, expected=total > 0, alone=args.world_size == 1)
        self._before, self._gradients = [], []
        if not total:
            return
        self._metrics = {
            "update/changed": sum(u.changed * u.expected for u in updates.values()) / total,
            **{f"update/changed_{name}": u.changed for name, u in updates.items()},
            **{f"update/relative_{name}": u.relative for name, u in updates.items()},
        }
        if known := [u.applied for u in updates.values() if not math.isnan(u.applied)]:
            self._metrics["update/applied"] = min(known)
        if not _starts_or_ends(inner):
            self._judge(updates, step)

    def _look_for_movement(
        self, optimizer: torch.optim.Optimizer, step: int, *, expected: bool, alone: bool
    ) -> None:
        """Weights that stay while there was something to learn, weights that nobody updates, and NaN.

        Sharding may put other tensors into the optimizer, so only a process alone is asked for its weights.
        """
        gradients = [gradient for gradient in self._gradients if gradient is not None]
        if not all(bool(values.isfinite().all()) for values in (*gradients, *self._after)):
            self._alarms.sound(
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
        moved = expected and not same(self._before, self._after)
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
                f"{self._still} updates had gradients and hardly moved the weights (learning rate "
                f"{rate:g}; grpo.max_grad_norm may be too small)"
            )
        if cause:
            self._alarms.sound(step, AlarmName.NO_UPDATE, f"{cause}; nothing is learned there")

    def _judge(self, updates: Mapping[str, GroupUpdate], step: int) -> None:
        lost = {name: u for name, u in updates.items() if u.changed < LOST or u.applied < LOST}
        if lost:
            dtypes = sorted({str(s.parameter.dtype).removeprefix("torch.") for s in self._sampled})
            said = ", ".join(f"{name} {u.changed:.0%} moved" for name, u in sorted(lost.items()))
            self._alarms.sound(
                step,
                AlarmName.UPDATES_VANISH,
                f"the update is lost in the rounding of the weights ({said}; they are "
                f"{' and '.join(dtypes)}); keep float32 weights, or raise grpo.learning_rate",
            )

    def _compare(self, optimizer: torch.optim.Optimizer) -> dict[str, GroupUpdate]:
        settings = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        found: dict[str, list[Part]] = defaultdict(list)
        for sampled, before, after, gradient in zip(
            self._sampled, self._before, self._after, self._gradients, strict=True
        ):
            group = settings.get(id(sampled.parameter))
            if group is None or group["lr"] == 0:
                continue
            state = optimizer.state.get(sampled.parameter, {})
            meant, known = adam_update(state, group, before, sampled.index), True
            if meant is None and gradient is not None:
                meant, known = (gradient, gradient != 0), False
            if meant is not None:
                found[sampled.group].append(Part(before, after - before, *meant, known=known))
        updates = {name: summary(parts) for name, parts in sorted(found.items())}
        return {name: update for name, update in updates.items() if update.expected}


def _starts_or_ends(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a schedule holds the learning rate at less than a quarter of what it is for.

    Steps so small are lost in the rounding of any type, and are meant to be next to nothing.
    """
    return all(float(g["lr"]) < float(g.get("initial_lr", g["lr"])) / 4 for g in optimizer.param_groups)
