"""TRL's hooks around sampling, adapted here and nowhere else: when weights are published, and to what.

TRL's synchronous trainer samples from servers of its own only, through `vllm_generation`; it publishes
before rollouts that belong to another step than `_last_loaded_step`, and corrects for the sampler's log-probs
where `use_vllm` is set. All three are set after it was built, since its constructor would start or look for
an engine of its own; from then on it reads exactly these (pinned by tests/smoke/test_trl_contract.py).

Its asynchronous trainer wants a transfer of weights that it drives itself: it freezes requests while it
gathers, merges adapters in place (a bfloat16 base would drift with every publication), and counts
publications instead of updates. There `_sync_weight` is replaced whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch

from sandbox_rl.training.probe import PublicationProbe
from sandbox_rl.training.publication.base import Weights
from sandbox_rl.training.views import ModelView, RolloutFunc, TrainerView


class _Hooked(ModelView, Protocol):
    """The attributes of TRL's synchronous trainer that are set."""

    use_vllm: bool
    vllm_generation: PolicyHooks
    rollout_func: RolloutFunc | None
    _last_loaded_step: int


class PolicyHooks:
    """Publishes a trainer's weights whenever something is about to be sampled with them.

    Args:
        probe: looks at some of the publications, where servers sample.
    """

    def __init__(self, trainer: ModelView, weights: Weights, probe: PublicationProbe | None = None) -> None:
        self._trainer = trainer
        self._weights = weights
        self._probe = probe
        self._rollout_s = self._publish_s = 0.0
        self.sampled_at = 0
        """Updates that were done when the newest rollouts began."""

    def install(self, trainer: _Hooked) -> None:
        """Take TRL's places in its synchronous trainer, once it was built."""
        if self._weights.served:
            trainer.use_vllm = True
            trainer.vllm_generation = self
            trainer._last_loaded_step = -1
        if trainer.rollout_func is not None:
            trainer.rollout_func = self._around(trainer.rollout_func)

    def bring_up_to_date(self) -> None:
        """Have the policy sample with the weights as they are now, if it does not yet; on every process.

        Raises:
            EngineFault: on every process, when a server did not take them.
        """
        step = int(self._trainer.state.global_step)
        if not self._weights.current(step):
            started = time.monotonic()
            self.publish(step)
            self._publish_s += time.monotonic() - started

    sync_weights = bring_up_to_date
    """TRL's name for it: it calls this before it asks for rollouts of another step."""

    def publish(self, step: int) -> None:
        """Publish the weights as they are now, after `step` updates."""
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        # What ZeRO-3 has divided as it was loaded is computed with by its engine, which training begins with.
        early = self._trainer.deepspeed is None and any(hasattr(p, "ds_id") for p in model.parameters())
        probe = None if early else self._probe
        with nullcontext() if probe is None else probe.around(model, step, asleep=self._weights.asleep):
            self._weights.publish(model, step)

    def take_seconds(self) -> tuple[float, float]:
        """Of rollouts and of publications, since the last call."""
        taken = self._rollout_s, self._publish_s
        self._rollout_s = self._publish_s = 0.0
        return taken

    def _around(self, rollouts: RolloutFunc) -> RolloutFunc:
        """The rollouts, with the newest weights, and with servers awake while they last (`policy.sleep`)."""

        def roll_out(prompts: Sequence[str], trainer: TrainerView) -> dict[str, list[Any]]:
            self.bring_up_to_date()
            started, self.sampled_at = time.monotonic(), int(self._trainer.state.global_step)
            rows = rollouts(prompts, trainer)
            self._rollout_s += time.monotonic() - started
            self._weights.sleep()
            return rows

        return roll_out


class NoTransfer:
    """What TRL's asynchronous trainer calls of its `WeightTransferProtocol`."""

    def init_weight_transfer(self) -> None:
        """Nothing: the first publication connects."""

    def destroy(self) -> None:
        """Nothing: whoever made the weights closes them."""


@contextmanager
def without_peak_flops() -> Iterator[None]:
    """While TRL's asynchronous trainer is built: TRL 1.16 asks CUDA for the card's name, for its MFU metric,
    also where there is no card. Unknown cards have None there; so have CPUs while open.
    """
    if torch.cuda.is_available():
        yield
        return
    from trl.experimental.async_grpo import async_grpo_trainer

    original = async_grpo_trainer.get_peak_flops_per_device
    async_grpo_trainer.get_peak_flops_per_device = lambda *_: None
    try:
        yield
    finally:
        async_grpo_trainer.get_peak_flops_per_device = original
