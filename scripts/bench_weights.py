"""What a vLLM server costs a run: its start, its restart, each update of its weights.

For each size a model of random weights is made and served while episodes keep asking for short turns. Per
way of transfer that this machine has:

    start        until the server answers
    publish      staging, pause, transfer, verification and resume
    pause        of it, between pause and resume
    stall        longest time between two finished turns of one episode around a publication, less the
                 median turn: what episodes see of it
    directory    the alternative: write a checkpoint, and have vLLM's own `reload_weights` read it
    restart      from SIGKILL until the newest weights are served again

    python scripts/bench_weights.py [--sizes 8M 120M] [--transfers shm gloo] [--json FILE]

Adapters beside merged weights are `bench_adapters.py`'s.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as the command line does, before torch is imported

import torch
from gpu_common import device_name
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from sandbox_rl.policies.base import TurnSampling
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm.fleet import ManagedServers, SupervisedServers
from sandbox_rl.policies.vllm.policy import VLLMPolicy
from sandbox_rl.policies.vllm.server import ManagedServer
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.publication.weights import PublishedWeights
from sandbox_rl.training.tiny import tiny_tokenizer

SHAPES = {  # hidden size, layers, vocabulary
    "8M": (256, 4, 16_384),
    "120M": (768, 12, 32_768),
    "600M": (1_024, 28, 151_936),
}
PROMPT = tuple(range(10, 42))
EPISODES = 4
TURN_TOKENS = 8


def make_model(size: str, dtype: torch.dtype) -> PreTrainedModel:
    """Qwen3 of random weights with tied embeddings."""
    hidden, layers, vocabulary = SHAPES[size]
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        head_dim=64,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).to(dtype)


class Bench:
    """A served model, and episodes that keep asking it."""

    def __init__(
        self, loop: LoopThread, checkpoint: Path, transfer: str, dtype: str, extra: dict[str, Any]
    ) -> None:
        gpu = torch.cuda.is_available()
        arguments = {"dtype": dtype, "max-model-len": 512, **extra}
        arguments |= {"gpu-memory-utilization": 0.3} if gpu else {"kv-cache-memory-bytes": 256 << 20}
        environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"} if "enable-lora" in extra else {}
        settings = VLLMSettings(type="vllm", arguments=arguments, environment=environment)
        self.loop = loop
        self.child = ManagedServer(
            settings,
            model=str(checkpoint),
            log=checkpoint.parent / f"{transfer}.log",
            transfer=transfer,
            gpu=gpu,
        )
        self.server = ManagedServers([self.child])
        self.weights = PublishedWeights(self.server, loop, transfer=transfer, keeps=True)
        supervised = SupervisedServers(self.server, self.weights, restarts=settings.restarts)
        self.policy = VLLMPolicy(supervised, settings, end_ids=frozenset({1}), version=self.weights.version)

    async def turn(self, seed: int, timeout: float = 300.0) -> int:
        """One short turn; its number of tokens."""
        async with self.policy.session("bench") as session:
            sampling = TurnSampling(max_tokens=TURN_TOKENS, seed=seed)
            return len((await session.act(PROMPT, sampling, timeout=timeout)).token_ids)

    async def complete(self, model: str, tokens: int) -> dict[str, Any]:
        """What the server itself answers for one of its models; for adapters, which no policy asks for."""
        (server,) = self.server.servers
        body = {
            "model": model,
            "prompt": list(PROMPT),
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 1.0,
            "logprobs": 0,
            "return_token_ids": True,
        }
        choice: dict[str, Any] = (await server.call("POST", "/v1/completions", body))["choices"][0]
        return choice

    @contextmanager
    def asked(self, ask: Callable[[int], Coroutine[Any, Any, Any]]) -> Iterator[list[list[float]]]:
        """Per episode the times at which its turns ended, while open."""
        ended: list[list[float]] = [[] for _ in range(EPISODES)]
        stop = threading.Event()

        async def episode(index: int) -> None:
            while not stop.is_set():
                await ask(len(ended[index]))
                ended[index].append(time.monotonic())

        async def episodes() -> None:
            await asyncio.gather(*map(episode, range(EPISODES)))

        thread = threading.Thread(target=lambda: self.loop.run(episodes()))
        thread.start()
        try:
            yield ended
        finally:
            stop.set()
            thread.join()

    def call(self, route: str, body: Any = None, **query: str) -> Any:
        """A control route of the server."""
        (server,) = self.server.servers
        return self.loop.run(server.call("POST", route, body, query=query))


def timed(act: Callable[[], Any]) -> float:
    started = time.monotonic()
    act()
    return time.monotonic() - started


def under_load(
    bench: Bench,
    act: Callable[[], Any],
    repeats: int,
    ask: Callable[[int], Coroutine[Any, Any, Any]] | None = None,
) -> tuple[float, float]:
    """Medians of (seconds of `act`, stall that episodes see), which take their turns by `ask`."""
    windows: list[tuple[float, float]] = []
    with bench.asked(ask or bench.turn) as ended:
        for _ in range(repeats):
            turns_done(ended, 2)  # of each episode, so that there is something usual to compare with
            started = time.monotonic()
            act()
            windows.append((started, time.monotonic()))
        turns_done(ended, 2)
    gaps = [pair for times in ended for pair in itertools.pairwise(times)]
    usual = [b - a for a, b in gaps if not any(b > start and a < end for start, end in windows)]
    longest = [max(b - a for a, b in gaps if b > start and a < end) for start, end in windows]
    took = statistics.median(end - start for start, end in windows)
    return took, statistics.median(longest) - statistics.median(usual)


def turns_done(ended: list[list[float]], more: int) -> None:
    """Wait until every episode has finished so many more turns."""
    counts = [len(times) for times in ended]
    deadline = time.monotonic() + 120
    while any(len(times) < count + more for times, count in zip(ended, counts, strict=True)):
        if time.monotonic() > deadline:
            raise SystemExit("the server does not answer any more")
        time.sleep(0.01)


def reload_from_directory(bench: Bench, model: PreTrainedModel, checkpoint: Path) -> None:
    model.save_pretrained(checkpoint)
    bench.call("/pause", mode="keep")
    bench.call("/collective_rpc", {"method": "reload_weights"})
    bench.call("/collective_rpc", {"method": "sandbox_rl_after_update"})
    bench.call("/resume")


def kill_and_wait(bench: Bench) -> None:
    child = bench.child.pid
    children = Path(f"/proc/{child}/task/{child}/children").read_text()
    os.kill(int(children.split()[0]), signal.SIGKILL)
    bench.loop.run(bench.turn(1, timeout=300.0))


def measure(size: str, transfer: str, dtype: str, repeats: int) -> dict[str, Any]:
    model = make_model(size, getattr(torch, dtype))
    if torch.cuda.is_available():
        model.cuda()
    row: dict[str, Any] = {
        "size": size,
        "transfer": transfer,
        "MiB": sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20,
    }
    with tempfile.TemporaryDirectory(prefix="bench-weights-") as directory, LoopThread() as loop:
        checkpoint = Path(directory) / "model"
        model.save_pretrained(checkpoint)
        tiny_tokenizer().save_pretrained(checkpoint)
        bench = Bench(loop, checkpoint, transfer, dtype, {})
        started = time.monotonic()
        with loop.entered(bench.policy):
            row["start_s"] = time.monotonic() - started
            bench.weights.publish(model, 1)  # connects, warms both ends up

            pauses: list[float] = []

            def publish() -> None:
                bench.weights.publish(model, bench.weights.version.value + 1)
                pauses.append(bench.weights.timing.stall_s)

            row["publish_s"], row["publish_stall_s"] = under_load(bench, publish, repeats)
            row["pause_s"] = statistics.median(pauses)
            row["directory_s"], row["directory_stall_s"] = under_load(
                bench, lambda: reload_from_directory(bench, model, checkpoint), repeats
            )
            row["restart_s"] = timed(lambda: kill_and_wait(bench))
            bench.weights.close()
    return row


def table(rows: list[dict[str, Any]]) -> str:
    names = list({name: None for row in rows for name in row})
    cells = [[_text(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(names)]
    lines = [names, *cells]
    return "\n".join("  ".join(text.rjust(w) for text, w in zip(line, widths, strict=True)) for line in lines)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if value < 10 else f"{value:.1f}"
    return "-" if value is None else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=["8M", "120M"])
    parser.add_argument("--transfers", nargs="+", choices=["shm", "gloo", "ipc", "nccl"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    cuda = torch.cuda.is_available()
    dtype = "bfloat16" if cuda else "float32"
    transfers = chosen.transfers or (["ipc", "shm"] if cuda else ["shm", "gloo"])
    print(f"{device_name()}, {dtype}, {chosen.repeats} repeats, medians", flush=True)
    rows = [measure(s, t, dtype, chosen.repeats) for s in chosen.sizes for t in transfers]
    print(table(rows))
    result = {"device": device_name(), "dtype": dtype, "command": sys.argv, "transfers": rows}
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
