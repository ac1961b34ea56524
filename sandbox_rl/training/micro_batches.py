"""Rows of a micro-batch in parts of a bounded number of tokens, and what each part's loss counts.

The parts are computed one after another, so the longest of them decides the memory that an update takes,
while the loss stays that of the whole micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import distributed, nn

from sandbox_rl.errors import ConfigError
from sandbox_rl.training.host_memory import trim_heap
from sandbox_rl.training.views import LossArgs, LossInputs, LossView

_PER_ROW = ("grpo", "sapo", "dr_grpo", "luspo")
"""Losses of TRL 1.16 that are a mean over the rows of a micro-batch."""

_PER_TOKEN = ("bnpo",)
"""Those that are a mean over its tokens."""

_SUMS = ("dapo", "cispo", "vespo")
"""Those that are a sum, divided by a count of the whole generation batch."""


_PER_COMPLETION_TOKEN = (
    "completion_ids",
    "completion_mask",
    "tool_mask",
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
    "importance_sampling_ratio",
)


class PartedLoss:
    """The loss of micro-batches, computed in parts of a bounded number of tokens.

    Args:
        tokens: computed at once, padding included; a single longer row is computed alone. None: the whole
            micro-batch.
        plan: takes rows of inputs in parts of so many tokens, or says None where rows are to be padded.

    Raises:
        ConfigError: parts are asked for with a loss that cannot be divided.
    """

    def __init__(
        self,
        trainer: LossView,
        tokens: int | None,
        plan: Callable[[LossInputs, int], list[list[int]] | None] | None = None,
    ) -> None:
        self._trainer = trainer
        self._tokens = tokens
        self._plan = plan
        if tokens is None:
            return
        coupled = "router_aux_loss_coef" if trainer.aux_loss_enabled else coupling(trainer.args)
        if coupled is not None:
            reason = f"grpo.{coupled}, which takes the rows of a micro-batch together"
        elif trainer.is_deepspeed_enabled:
            reason = "DeepSpeed, which would step after each part"
        else:
            return
        raise ConfigError(
            f"update.micro_batch_tokens: {tokens}, expected none with {reason}; "
            "lower grpo.per_device_train_batch_size instead"
        )

    def total(
        self, model: nn.Module, inputs: LossInputs, loss_of: Callable[[LossInputs], torch.Tensor]
    ) -> torch.Tensor:
        """The loss of a micro-batch; of all parts but the last one the gradient is there already.

        Args:
            loss_of: a part, without padding of the whole → its loss.
        """
        accelerator = self._trainer.accelerator
        # FSDP2 would keep whole gradients until they are exchanged: there each part exchanges its own.
        held = nullcontext if accelerator.is_fsdp2 else partial(accelerator.no_sync, model)
        done: list[torch.Tensor] = []
        parts = self._parts(inputs) if model.training else [inputs]
        for part in parts[:-1]:
            with held():
                loss = self._share(inputs, part) * loss_of(trim_padding(part))
                accelerator.backward(loss)
            done.append(loss.detach())
            if loss.device.type == "cpu":
                trim_heap()  # parts are there to save memory, and holes of one do not fit the next
        last = self._share(inputs, parts[-1]) * loss_of(trim_padding(parts[-1]))
        return last + sum(done) if done else last

    def _parts(self, inputs: LossInputs) -> list[LossInputs]:
        if self._tokens is None:
            return [inputs]
        plan = None if self._plan is None else self._plan(inputs, self._tokens)
        if plan is None:
            lengths = lengths_of(inputs)
            bounds = largest_of(sorted(lengths, reverse=True), inputs["completion_mask"].device)
            plan = plan_parts(lengths, self._tokens, bounds=bounds)
        return [inputs] if len(plan) == 1 else [part_of(inputs, rows) for rows in plan]

    def _share(self, inputs: LossInputs, part: LossInputs) -> torch.Tensor | float:
        return 1.0 if part is inputs else loss_share(self._trainer.args.loss_type, inputs, part)


def plan_parts(
    lengths: Sequence[int], budget: int | None, *, bounds: Sequence[int] | None = None
) -> list[list[int]]:
    """Indices of rows in parts of at most `budget` tokens with their padding, longest first if parted.

    Neighbours in length share a part, so that little is padded. A row longer than the budget is a part of
    its own.

    Args:
        lengths: tokens of each row.
        budget: of rows times longest row; None for no bound.
        bounds: of the longest row, the second and so on, the largest length of all processes. Parts that are
            planned by it hold equally many rows on each: sharded models compute together, and TRL gathers
            metrics row by row.
    """
    tokens = sorted(lengths, reverse=True) if bounds is None else bounds
    if budget is None or len(lengths) * tokens[0] <= budget:
        return [list(range(len(lengths)))]
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    parts: list[list[int]] = []
    longest = 0
    for row, bound in zip(order, tokens, strict=True):
        if parts and (len(parts[-1]) + 1) * longest <= budget:
            parts[-1].append(row)
        else:
            parts.append([row])
            longest = bound
    return parts


def largest_of(values: Sequence[int], device: torch.device) -> list[int]:
    """Each value's largest of all processes, which have equally many."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return list(values)
    largest = torch.tensor(values, device=device)
    distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
    agreed: list[int] = largest.tolist()
    return agreed


def lengths_of(inputs: Mapping[str, torch.Tensor]) -> list[int]:
    """Tokens of each row of TRL's `compute_loss` inputs, prompt and completion."""
    both: list[int] = (inputs["prompt_mask"].sum(-1) + inputs["completion_mask"].sum(-1)).tolist()
    return both


def part_of(inputs: Mapping[str, torch.Tensor], rows: Sequence[int]) -> LossInputs:
    """Those rows of TRL's `compute_loss` inputs; what is not per row stays."""
    count = inputs["completion_mask"].size(0)
    chosen = torch.tensor(rows, device=inputs["completion_mask"].device)
    return {
        key: value[chosen] if torch.is_tensor(value) and value.dim() and value.size(0) == count else value
        for key, value in inputs.items()
    }


def loss_share(
    loss_type: str, inputs: Mapping[str, torch.Tensor], part: Mapping[str, torch.Tensor]
) -> torch.Tensor | float:
    """What TRL's loss of `part` is multiplied by, so that the parts of `inputs` add up to its loss."""
    if loss_type in _SUMS:
        return 1.0
    if loss_type in _PER_ROW:
        return len(part["completion_mask"]) / len(inputs["completion_mask"])
    if loss_type in _PER_TOKEN:
        share: torch.Tensor = sampled_mask(part).sum() / sampled_mask(inputs).sum().clamp(min=1)
        return share
    raise ValueError(f"loss_type {loss_type!r}: not known how its parts add up")


def coupling(args: LossArgs) -> str | None:
    """The field of TRL's settings that takes the rows of a micro-batch together, if there is one."""
    if args.loss_type not in (*_PER_ROW, *_PER_TOKEN, *_SUMS):
        return f"loss_type={args.loss_type!r}"
    if args.top_entropy_quantile < 1:
        return f"top_entropy_quantile={args.top_entropy_quantile}"
    if args.entropy_coef or args.use_adaptive_entropy:
        return "entropy_coef"
    return None


def sampled_mask(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """1 where the policy sampled a token, (B, C), of TRL's `compute_loss` inputs."""
    mask: torch.Tensor = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    return mask


def trim_padding(inputs: Mapping[str, torch.Tensor]) -> LossInputs:
    """`inputs` of TRL's `compute_loss` without all-padding columns.

    Prompts (B, P) are padded on the left, everything per completion token (B, C) on the right;
    tensors of other widths, such as sequence-level ratios (B, 1), are left alone.
    """
    width = inputs["completion_mask"].size(1)
    completion = max(1, int(inputs["completion_mask"].sum(-1).max()))
    prompt = max(1, int(inputs["prompt_mask"].sum(-1).max()))
    trimmed = dict(inputs)
    for key in ("prompt_ids", "prompt_mask"):
        trimmed[key] = inputs[key][:, -prompt:]
    for key in _PER_COMPLETION_TOKEN:
        value = inputs.get(key)
        if torch.is_tensor(value) and value.dim() == 2 and value.size(1) == width:
            trimmed[key] = value[:, :completion]
    return trimmed
