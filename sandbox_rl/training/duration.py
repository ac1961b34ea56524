"""How long training takes, by formulas, before anything is loaded.

An estimate for choosing a machine, not a promise: what a policy will write is not known beforehand. Every
assumption is a constant of this module. Per update and device,

    sampling = rounds * S * step(R) + (longest - S) * step(1),   S = sampled tokens of an average episode
    step(R)  = overhead + R * row + (bytes of weights + R * context * bytes per token of keys and values)
               / (bandwidth * BANDWIDTH_USED)
    training = episodes * (c * N * T + c * L * q * T^2) / (peak rate * RATE_USED),   T = tokens of an episode

with R rows sampled together, N active parameters, L layers and q = heads x head size. c is 6: two operations
per weight and token forward, four backward (arXiv 2001.08361, 2.1), and for causal attention 2*T^2*q of them
forward and twice that backward; LoRA spares the gradients of the frozen weights, so there it is 4. Commands
run beside the sampling of other episodes and are 2 to 4 % of the time (arXiv 2601.16206): left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from sandbox_rl.training.memory import ModelShape

MEAN_TOKENS = 12_900
"""Completion of an average episode: what arXiv 2601.16206 reports for long documents in the sandbox; at most
half of the budget."""

SAMPLED_SHARE = 0.56
"""Of a completion: the environment's part is 37 to 51 % there."""

LONGEST = 3.0
"""The longest of a step's episodes in averages, at most the budget. A guess: lengths have a long tail."""

RATE_USED = 0.2
"""Of the device's peak rate by forward and backward pass, measured: 20 to 23 % on an H100 at 121M to 600M
parameters with activation checkpointing, whose second forward pass is within it."""

BANDWIDTH_USED = 0.7
"""Of the memory's peak by decoding, a rule of thumb."""

SERVER_STEP_S, SERVER_ROW_S = 2.7e-3, 22e-6
"""Host time of a vLLM decoding step and of each row in it, measured on an H100 with a model whose weights
cost nothing (135M parameters): 15.6k tokens/s at 64 rows, 30.4k at 256."""

EAGER_LAYER_S = 0.7e-3
"""Host time of one layer in the in-process policy, which launches every kernel by itself; a rule of thumb."""

SMALL = 10_000_000
"""Below so many parameters Python and the sandboxes decide, and no formula here."""


@dataclass(frozen=True, slots=True)
class Device:
    """Peak numbers from the maker's data sheet: dense bf16 operations and bytes of memory per second."""

    name: str
    rate: float
    bandwidth: float


DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        Device("H200", 989e12, 4.8e12),
        Device("H100", 989e12, 3.35e12),
        Device("A100", 312e12, 2.0e12),
        Device("L40S", 362e12, 0.864e12),
        Device("4090", 165e12, 1.008e12),
    )
}


def device_named(name: str) -> Device:
    """The device whose name occurs in `name` (as torch gives it); the H100 where none does."""
    return next((device for key, device in DEVICES.items() if key in name), DEVICES["H100"])


@dataclass(frozen=True, slots=True)
class DurationEstimate:
    """Seconds of one update on each device."""

    updates: int
    device: Device
    sampling: float
    training: float

    @property
    def hours(self) -> float:
        """Of the whole run."""
        return self.updates * (self.sampling + self.training) / 3600

    def __str__(self) -> str:
        shown = f"{self.hours:.0f}" if self.hours >= 10 else f"{self.hours:.1f}"
        return (
            f"estimated {shown} h on {self.device.name} for {self.updates} updates "
            f"(each: sampling {self.sampling:.0f} s, training {self.training:.0f} s)"
        )


def sampled_together(policy_type: str, max_batch: int, concurrency: int, episodes: int) -> int:
    """Rows that one device samples together; a server takes all that there are."""
    return max(1, min(concurrency, episodes, *([max_batch] if policy_type == "transformers" else [])))


def estimate_duration(
    shape: ModelShape,
    device: Device,
    *,
    updates: int,
    episodes: int,
    rows: int,
    prompt_tokens: int,
    max_tokens: int,
    server: bool,
    lora: bool = False,
    item: int = 2,
    shards: int = 1,
) -> DurationEstimate | None:
    """Estimate a synchronous run; None for a model so small that the formulas do not hold.

    Args:
        episodes: of one update and device.
        rows: of them, sampled together.
        max_tokens: budget of an episode's completion.
        server: whether a vLLM server samples, on as many devices, instead of the trainer's process.
        item: bytes of a weight, and of a key or value.
        shards: devices that hold one copy of the weights among them while sampling.
    """
    if shape.parameters < SMALL:
        return None
    completion = min(MEAN_TOKENS, max_tokens / 2)
    longest = min(LONGEST * completion, max_tokens)
    length = prompt_tokens + completion

    def step(count: int) -> float:
        host = SERVER_STEP_S + count * SERVER_ROW_S if server else EAGER_LAYER_S * shape.layers
        kv = 2 * shape.layers * shape.kv_width * item
        read = shape.parameters * item / shards + count * (prompt_tokens + completion / 2) * kv
        return host + read / (device.bandwidth * BANDWIDTH_USED)

    sampled = SAMPLED_SHARE * completion
    tail = SAMPLED_SHARE * longest - sampled
    sampling = ceil(episodes / rows) * sampled * step(rows) + tail * step(1)
    per_token = 4 if lora else 6
    operations = per_token * length * (active_parameters(shape) + shape.layers * shape.query_width * length)
    return DurationEstimate(updates, device, sampling, episodes * operations / (device.rate * RATE_USED))


def active_parameters(shape: ModelShape) -> int:
    """Weights that a token is multiplied with: attention, a gated MLP (active experts), and the head."""
    attention = shape.hidden * (2 * shape.query_width + 2 * shape.kv_width)
    return shape.layers * (attention + 3 * shape.hidden * shape.mlp_width) + shape.vocabulary * shape.hidden
