"""Four updates in bfloat16 at the paper's rate, on one launch path, beside AdamW's arithmetic in float64.

As a program it is one of two processes: `torchrun … -m tests.smoke.precision_paths WAY DIRECTORY`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from peft import LoraConfig
from torch import distributed
from transformers import TrainerCallback

from sandbox_rl.training import base_trainer as trainer_module
from sandbox_rl.training.precision import settle_precision
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from tests.smoke.support import given_reward, make_rollout, make_trainer, rows_of

RATE = 1e-6
UPDATES = 4


@dataclass(frozen=True)
class Moved:
    """Of everything that is trained: its share that changed, by group, and how right the change is."""

    share: float
    norms: float
    cosine: float
    dtypes: frozenset[torch.dtype]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    full = getattr(tensor, "full_tensor", None)
    return (full() if full else tensor).detach().clone()


class Arithmetic(TrainerCallback):
    """AdamW in float64 from the gradients that the optimizer got (arXiv 1711.05101, algorithm 2)."""

    def __init__(self) -> None:
        self.start: dict[str, torch.Tensor] = {}
        self.right: dict[str, torch.Tensor] = {}
        self.end: dict[str, torch.Tensor] = {}
        self.dtypes: set[torch.dtype] = set()
        self._moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._step = 0

    @staticmethod
    def trained(model: Any) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        self._step += 1
        group = optimizer.param_groups[0]
        rate, (one, two), eps = group["lr"], group["betas"], group["eps"]
        for name, parameter in self.trained(model).items():
            gradient = whole(parameter.grad).double()
            if name not in self.start:
                self.start[name] = whole(parameter)
                self.right[name] = self.start[name].double()
                self._moments[name] = (torch.zeros_like(gradient), torch.zeros_like(gradient))
            mean, square = self._moments[name]
            mean.mul_(one).add_(gradient, alpha=1 - one)
            square.mul_(two).addcmul_(gradient, gradient, value=1 - two)
            scale = (square / (1 - two**self._step)).sqrt() + eps
            self.right[name] -= rate * (mean / (1 - one**self._step)) / scale
            self.dtypes |= {parameter.dtype, parameter.grad.dtype}

    def on_train_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.end = {name: whole(p) for name, p in self.trained(model).items()}
        self.dtypes |= {v.dtype for s in optimizer.state.values() for v in s.values() if v.dim()}

    def moved(self) -> Moved:
        def share(names: Sequence[str]) -> float:
            total = sum(self.start[n].numel() for n in names)
            return sum(int((self.start[n] != self.end[n]).sum()) for n in names) / max(1, total)

        applied = torch.cat([(self.end[n].double() - self.start[n].double()).flatten() for n in self.start])
        right = torch.cat([(self.right[n] - self.start[n].double()).flatten() for n in self.start])
        return Moved(
            share(list(self.start)),
            share([n for n in self.start if "norm" in n]),
            float(applied @ right / (applied.norm() * right.norm())),
            frozenset(self.dtypes),
        )


def shard(trainer: Any) -> None:
    """What `configs/accelerate/fsdp2.yaml` makes of a trainer on GPUs; accelerate shards nowhere else."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        state_dict_type="FULL_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )
    plugin.set_mixed_precision("bf16")
    for state in (PartialState._shared_state, AcceleratorState._shared_state):
        state["distributed_type"] = DistributedType.FSDP
    trainer.accelerator.state.fsdp_plugin = plugin
    trainer.is_fsdp_enabled = True
    settle_precision(trainer)


class Spied(SandboxGRPOTrainer):
    """Adapters and types as a recipe has them, and what types its log-probs have."""

    adapters = False
    log_probs: set[torch.dtype]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.log_probs = set()
        if self.adapters:
            kwargs["model"] = kwargs["model"].to(torch.bfloat16)
            kwargs["peft_config"] = LoraConfig(r=4, target_modules="all-linear")
        super().__init__(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self.log_probs.add(found[0].dtype)
        return found


def updates(
    directory: Path, *, adapters: bool, keep: torch.dtype | None = None, **fields: Any
) -> tuple[Moved, Any]:
    """Of a tiny model, with the rows of this process; and the trainer.

    Args:
        keep: a type that the trained weights have after all.
    """
    rows = [make_rollout("abcd"[i // 4], float(i % 2), seed=i) for i in range(8)]
    recorded = Arithmetic()
    trainer = make_trainer(
        directory,
        lambda prompts, _: rows_of(rows),
        given_reward,
        cls=type("Path", (Spied,), {"adapters": adapters}),
        tasks=tuple("abcd"),
        callbacks=[recorded],
        **{
            "bf16": True,
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            "max_steps": UPDATES,
            "max_grad_norm": 1.0,
            **fields,
        },
    )
    if keep is not None:
        trainer.model.to(keep)
    trainer.train()
    return recorded.moved(), trainer


def main() -> None:
    way, directory = sys.argv[1], Path(sys.argv[2])
    adapters = way.endswith("lora")
    if way.startswith("fsdp2"):
        trainer_module.settle_precision = shard
    moved, trainer = updates(directory, adapters=adapters, save_strategy="steps", save_steps=UPDATES)
    if way.startswith("fsdp2"):
        assert all(type(p).__name__ == "DTensor" for p in trainer.model.parameters()), "it was not sharded"
    print(
        f"\nrank {distributed.get_rank()}: moved {moved.share:.4f} norms {moved.norms:.4f} "
        f"cosine {moved.cosine:.5f} types {sorted(str(d) for d in moved.dtypes)} "
        f"log-probs {sorted(str(d) for d in trainer.log_probs)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
