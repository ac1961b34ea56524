"""What each of two processes does in tests/smoke/test_zero3.py: a model divided by ZeRO-3, on CPUs.

`DS_ACCELERATOR=cpu python -m tests.smoke.zero3 DIRECTORY`, twice; the first process writes `found.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback

from sandbox_rl.chat.turn_ends import TurnEnds
from sandbox_rl.http_client import Address
from sandbox_rl.policies.vllm.fake import FakeVLLM
from sandbox_rl.policies.vllm.source import ExternalServers
from sandbox_rl.training.export import export_model, whole_weights
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.publication.merge import checkpoint_tensors
from sandbox_rl.training.publication.payload import checksums_of
from sandbox_rl.training.publication.routes import verify
from sandbox_rl.training.publication.weights import PublishedWeights
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from tests.smoke.precision_paths import RATE
from tests.smoke.support import CARD, TOKENIZER, given_reward, make_rollout, make_trainer, rows_of, tiny_model

DEEPSPEED = {
    # Small weights would stay whole otherwise, and these are all small.
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}
    | {"stage3_gather_16bit_weights_on_model_save": True},
    "bf16": {"enabled": True},
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
}
UPDATES, SAVED = 5, 3


class Masters(TrainerCallback):
    """This process's part of the weights that ZeRO-3 updates, after the first and after the last update."""

    def __init__(self) -> None:
        self.first: list[torch.Tensor] = []
        self.last: list[torch.Tensor] = []

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        while not hasattr(optimizer, "fp32_partitioned_groups_flat"):
            optimizer = optimizer.optimizer
        self.last = [part.detach().clone() for part in optimizer.fp32_partitioned_groups_flat]
        self.first = self.first or self.last


def trainer_of(directory: Path, *, parts: dict[str, Any] | None = None, **fields: Any) -> SandboxGRPOTrainer:
    """The same rows in every generation, others on each process."""
    rank = PartialState().process_index
    rows = [make_rollout("abcd"[i // 4 + 2 * rank], float(i % 2), seed=i + 8 * rank) for i in range(8)]
    settings = {"learning_rate": RATE, "lr_scheduler_type": "constant", "bf16": True, "deepspeed": DEEPSPEED}
    trainer = make_trainer(
        directory,
        lambda prompts, trainer: rows_of(rows),
        given_reward,
        cls=SandboxGRPOTrainer,
        tasks="abcd",
        parts=parts,
        **(settings | fields),
    )
    assert isinstance(trainer, SandboxGRPOTrainer)
    return trainer


def published(trainer: SandboxGRPOTrainer) -> dict[str, torch.Tensor]:
    """What servers would get; the same on all processes, and divided again afterwards."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    tensors = {name: tensor.clone() for name, tensor in checkpoint_tensors(model)}
    assert all(parameter.numel() == 0 for parameter in model.parameters() if hasattr(parameter, "ds_id"))
    sums = gather_object([{name: (float(t.double().sum()), t.numel()) for name, t in tensors.items()}])
    assert sums[0] == sums[1]
    return tensors


def main(directory: Path) -> None:
    state = PartialState(cpu=True)
    fake = FakeVLLM()
    with LoopThread() as loop:
        if state.is_main_process:
            serving = fake.serving(directory / "server")
            loop.run(serving.__aenter__())
        address = Address.parse(f"unix://{directory / 'server'}")
        source = ExternalServers([address], needed_context=1, tokenizer=None, startup_timeout_s=120)
        state.wait_for_everyone()
        weights = PublishedWeights(source if state.is_main_process else None, loop)
        with loop.entered(source):
            found = trained(directory, weights)
            if state.is_main_process:
                wanted = {name: tensor.float() for name, tensor in found.pop("published").items()}
                loop.run(verify(source.servers[0], checksums_of(wanted)))  # it said that its type is float32
                found["version"] = weights.version.value
        weights.close()
        if state.is_main_process:
            loop.run(serving.__aexit__(None, None, None))
            (directory / "found.json").write_text(json.dumps(found))
    state.wait_for_everyone()
    torch.distributed.destroy_process_group()


def trained(directory: Path, weights: PublishedWeights) -> dict[str, Any]:
    """Train, publish, save, export; go on from the checkpoint; with adapters."""
    main_one = PartialState().is_main_process
    masters = Masters()
    trainer = trainer_of(
        directory / "run",
        callbacks=[masters],
        max_steps=UPDATES,
        save_strategy="steps",
        save_steps=SAVED,
    )
    trainer.train()
    changed = torch.cat([(a != b).flatten() for a, b in zip(masters.first, masters.last, strict=True)])
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    weights.publish(model, UPDATES)
    tensors = published(trainer)
    named = dict(tiny_model(TOKENIZER).named_parameters())
    assert {n: t.shape for n, t in tensors.items()} == {n: p.shape for n, p in named.items()}

    kept = whole_weights(model, dtype=torch.bfloat16, keep=main_one)
    if main_one:
        exported = export_model(
            model,
            TOKENIZER,
            directory / "export",
            ends=TurnEnds(TOKENIZER.eos_token_id),
            dtype=torch.bfloat16,
            **CARD,
            weights=kept,
        )
        loaded = load_file(exported / "model.safetensors")  # transformers would divide it again
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(tensor, tensors[name].bfloat16()) for name, tensor in loaded.items())

    checkpoint = directory / "run" / f"checkpoint-{SAVED}"
    again = trainer_of(directory / "run", max_steps=UPDATES)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert again.state.global_step == UPDATES
    resumed = published(again)
    saved = load_file(checkpoint / "model.safetensors")

    adapted = trainer_of(
        directory / "adapted",
        parts={"peft_config": LoraConfig(r=4, target_modules="all-linear")},
        max_steps=2,
        learning_rate=1e-2,
    )
    adapted.train()
    merged = published(adapted)
    start = tiny_model(TOKENIZER)
    moved = [n for n, p in start.named_parameters() if not torch.equal(merged[n], p.bfloat16().float())]
    assert merged.keys() == named.keys()
    return {
        "share": changed.float().mean().item(),
        "dtypes": sorted({str(part.dtype) for part in masters.last}),
        "resumed": all(torch.equal(resumed[name], tensor) for name, tensor in tensors.items()),
        "between": not all(torch.equal(saved[n].float(), tensors[n].float()) for n in saved),
        "moved": sorted({name.rpartition(".")[0].rpartition(".")[2] for name in moved}),
        "published": tensors,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
