"""What the asynchronous trainer publishes: everything gathered before requests freeze, adapters in a copy."""

from __future__ import annotations

import queue
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from sandbox_rl.training.asynchronous.config import async_config
from sandbox_rl.training.asynchronous.trainer import SandboxAsyncTrainer
from tests.smoke.support import TOKENIZER, tiny_model


class Transfer:
    """Keeps what it is given, and in which order it was asked for what."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.tensors: dict[str, torch.Tensor] = {}

    def init_weight_transfer(self) -> None:
        self.calls.append("init")

    def stage(self, tensors) -> dict[str, torch.Tensor]:
        self.calls.append("stage")
        return {name: tensor.clone() for name, tensor in tensors}

    def pause(self) -> None:
        self.calls.append("pause")

    def send(self, staged, *, version: int) -> None:
        self.tensors = staged
        self.calls.append("send")

    def resume(self) -> None:
        self.calls.append("resume")

    def destroy(self) -> None:
        self.calls.append("destroy")


@pytest.fixture
def published(tmp_path):
    """(trainer with adapters on a bfloat16 base, what it publishes to, versions told to its worker)."""
    model = tiny_model(TOKENIZER).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    versions: list[int] = []
    worker = SimpleNamespace(
        rollout_buffer=queue.Queue(), metrics_queue=queue.Queue(), update_model_version=versions.append
    )
    transfer = Transfer()
    trainer = SandboxAsyncTrainer(
        model=str(tmp_path / "model"),
        args=async_config(
            {"max_steps": 1},
            checkpoints=tmp_path / "run",
            name="x",
            seed=0,
            max_tokens=50,
            longest=100,
            dtype=torch.bfloat16,
            adapters=True,
        ),
        at_once=4,
        train_dataset=Dataset.from_dict({"prompt": ["a"]}),
        processing_class=TOKENIZER,
        peft_config=LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
        rollout_worker=worker,
        weight_transfer=transfer,
    )
    return trainer, transfer, versions


def test_adapters_are_folded_into_a_copy_and_requests_freeze_only_for_the_transfer(published):
    trainer, transfer, versions = published
    base = {name: p.clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}
    before = len(transfer.calls)
    for update in range(3):
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01)
        trainer.state.global_step = update + 1
        trainer._sync_weight()
        layer = trainer.model.get_base_model().model.layers[0].self_attn.q_proj
        delta = layer.get_delta_weight("default").float()
        folded = layer.base_layer.weight.float() + delta
        assert torch.equal(transfer.tensors["model.layers.0.self_attn.q_proj.weight"], folded), update
    assert transfer.calls[before:] == ["stage", "pause", "send", "resume"] * 3
    assert versions == [1, 2, 3]
    for name, parameter in trainer.model.named_parameters():
        assert name not in base or torch.equal(parameter, base[name]), name
    for name in ("pause", "barrier", "transfer"):
        assert len(trainer._metrics["train"][f"perf/weight_sync_{name}_s"]) == 3
