"""Sampled tokens/s of episodes in sandboxes beside the same server fed the same token work without tools.

    python scripts/gpu_bench_rollouts.py [--scale tiny|full] [--slots N ...] [--json FILE]

Episodes of 4 to 8 turns run in real sandboxes on a real vLLM server of random weights. Each turn samples a
fixed number of tokens; what the episode goes on with is a scripted call of `execute_bash` that takes a
log-normal time (median 50 ms). Then the server gets exactly the same requests once more (prompts, seeds,
lengths; an episode's one after the other, as many episodes at once as it has slots), with nothing in between:
what it can do at best.

For each number of slots (`max-num-seqs`) the episodes in flight grow until the ratio reaches 0.90. Rates are
of the time in which the number in flight is kept up: until the last episode has begun.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpu_bench_trainer
from gpu_common import device_name, scale_of

from sandbox_rl.agents.base import EpisodeRequest, EpisodeSettings
from sandbox_rl.agents.tokens import TokenAgent
from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.policies.base import PolicySession, Sampling, TurnSampling
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm.fleet import ManagedServers
from sandbox_rl.policies.vllm.policy import VLLMPolicy
from sandbox_rl.policies.vllm.server import ManagedServer
from sandbox_rl.rewards.places import PROGRAM
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.rollout.engine import RolloutEngine
from sandbox_rl.rollout.settings import RolloutSettings
from sandbox_rl.sandboxes.config import EmbeddedSettings, PoolSettings
from sandbox_rl.sandboxes.embedded import EmbeddedBackend
from sandbox_rl.sandboxes.pool import SandboxPool
from sandbox_rl.sandboxes.program import ProgramSandboxes
from sandbox_rl.tools.toolbox import Toolbox, make_toolbox
from sandbox_rl.training.publication.base import shared_version
from sandbox_rl.training.tiny import tiny_tokenizer
from sandbox_rl.types import Action, Message, Task, ToolCall

BOUND = 0.90
TOOL_S, TOOL_SIGMA = 0.05, 1.0
"""Median seconds of a command, and the spread of the logarithm."""


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Args:
        slots: of the server, one measurement each.
        flight: episodes in flight as multiples of the slots, until one is enough.
        turn_tokens: sampled per turn.
        waves: episodes per measurement, in multiples of those in flight.
    """

    slots: tuple[int, ...]
    flight: tuple[float, ...]
    turn_tokens: int
    waves: int


SCALES = {
    "full": Scale(slots=(64, 256), flight=(1.0, 1.25, 1.5, 2.0, 3.0), turn_tokens=64, waves=4),
    "tiny": Scale(slots=(8,), flight=(1.0, 2.0), turn_tokens=32, waves=3),
}


@dataclass
class Record:
    """What the server was asked for, and when it had answered.

    Attributes:
        turns: by episode, its requests in order.
        begun: when each episode asked for the first time.
        ended: (time, tokens) of every answer.
    """

    turns: dict[str, list[tuple[Sequence[int], int]]] = field(default_factory=dict)
    begun: list[float] = field(default_factory=list)
    ended: list[tuple[float, int]] = field(default_factory=list)

    def rate(self) -> float:
        """Tokens/s until the last episode has begun."""
        last = max(self.begun)
        first = min(self.begun)
        return sum(tokens for when, tokens in self.ended if when <= last) / (last - first)


class FixedLength(VLLMPolicy):
    """Samples exactly as many tokens as are asked for, whatever they are."""

    def _body(self, prompt_ids: Sequence[int], sampling: TurnSampling, version: int) -> dict[str, Any]:
        body = super()._body(prompt_ids, sampling, version)
        return body | {"min_tokens": sampling.max_tokens, "stop_token_ids": []}


class Puppet:
    """Lets the server work, and says what the script says."""

    def __init__(self, served: FixedLength, chat: ChatFormat, record: Record, turn_tokens: int) -> None:
        self._served = served
        self._chat = chat
        self._record = record
        self._turn_tokens = turn_tokens

    @property
    def max_context(self) -> int:
        """Of the server."""
        return self._served.max_context

    async def __aenter__(self) -> Puppet:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    @asynccontextmanager
    async def session(self, episode_id: str) -> AsyncIterator[PolicySession]:
        """One episode of 4 to 8 turns, the last of which submits."""
        rng = random.Random(episode_id)
        calls = [_command(rng) for _ in range(rng.randint(3, 7))] + [ToolCall("submit", {})]
        async with self._served.session(episode_id) as served:
            yield _Session(self, served, episode_id, calls)


class _Session:
    def __init__(self, puppet: Puppet, served: PolicySession, episode_id: str, calls: list[ToolCall]) -> None:
        self._puppet = puppet
        self._served = served
        self._id = episode_id
        self._calls = calls

    async def act(self, prompt_ids: Sequence[int], sampling: TurnSampling, *, timeout: float) -> Action:
        puppet = self._puppet
        record = puppet._record
        turns = record.turns.setdefault(self._id, [])
        if not turns:
            record.begun.append(time.monotonic())
        turns.append((tuple(prompt_ids), sampling.seed))
        asked = TurnSampling(max_tokens=puppet._turn_tokens, seed=sampling.seed)
        action = await self._served.act(prompt_ids, asked, timeout=timeout)
        record.ended.append((time.monotonic(), len(action.token_ids)))
        said = puppet._chat.render_call("", [self._calls[len(turns) - 1]])
        return Action(said, (0.0,) * len(said), "stop", action.weight_version)


def _command(rng: random.Random) -> ToolCall:
    seconds = TOOL_S * rng.lognormvariate(0, TOOL_SIGMA)
    return ToolCall("execute_bash", {"command": f"sleep {seconds:.3f}; seq {rng.randint(5, 40)}"})


async def with_tools(
    served: FixedLength, chat: ChatFormat, toolbox: Toolbox, scale: Scale, in_flight: int, name: str
) -> Record:
    """Episodes in sandboxes, `in_flight` at a time."""
    record = Record()
    settings = EmbeddedSettings()
    engine = RolloutEngine(
        agent=TokenAgent(Puppet(served, chat, record, scale.turn_tokens), chat),
        backend=SandboxPool(
            EmbeddedBackend(settings=settings),
            limits=settings.limits,
            settings=PoolSettings(max_live=2 * in_flight),
        ),
        scoring=ScoringPool(ProgramSandboxes(PROGRAM, memory_mb=2048)),
        toolbox=toolbox,
        render=lambda task: (Message("user", task.prompt),),
        episode=EpisodeSettings(max_turns=8, timeout_s=300, exec_timeout_s=30),
        sampling=Sampling(),
        settings=RolloutSettings(concurrency=in_flight),
    )
    requests = [
        EpisodeRequest(
            f"{name}-{index}", Task(id=f"{name}-{index}", prompt=f"Task {index}.", answer="1"), seed=index
        )
        for index in range(scale.waves * in_flight)
    ]
    async with engine:
        await engine.run(requests)
    return record


async def without_tools(served: FixedLength, recorded: Record, scale: Scale, at_once: int) -> Record:
    """The requests of `recorded` once more, one episode's after the other, `at_once` episodes at a time."""
    record = Record()
    free = asyncio.Semaphore(at_once)

    async def chain(name: str, turns: list[tuple[Sequence[int], int]]) -> None:
        async with free, served.session(name) as session:
            record.begun.append(time.monotonic())
            for prompt_ids, seed in turns:
                sampling = TurnSampling(max_tokens=scale.turn_tokens, seed=seed)
                action = await session.act(prompt_ids, sampling, timeout=300)
                record.ended.append((time.monotonic(), len(action.token_ids)))

    await asyncio.gather(*(chain(name, turns) for name, turns in recorded.turns.items()))
    return record


async def forget_prefixes(servers: ManagedServers) -> None:
    """Nothing of the run before is left in the cache."""
    for server in servers.servers:
        await server.call("POST", "/reset_prefix_cache")


async def on_server(model: Path, slots: int, scale: Scale, gpu: bool) -> list[dict[str, Any]]:
    """One row per number of episodes in flight."""
    toolbox = make_toolbox()
    chat = ChatFormat.from_tokenizer(tiny_tokenizer(), toolbox.schemas)
    arguments: dict[str, Any] = {"max-num-seqs": slots, "max-model-len": 2048}
    arguments |= {"gpu-memory-utilization": 0.6} if gpu else {"kv-cache-memory-bytes": 256 << 20}
    settings = VLLMSettings(type="vllm", arguments=arguments | {"dtype": "auto"})
    server = ManagedServer(
        settings, model=str(model), log=model.parent / f"vllm-{slots}.log", transfer="shm", gpu=gpu
    )
    rows = []
    servers, ends = ManagedServers([server]), frozenset({0})
    async with FixedLength(servers, settings, end_ids=ends, version=shared_version()) as served:
        warm = await with_tools(served, chat, toolbox, scale, slots, "warm")
        for multiple in scale.flight:
            in_flight = round(multiple * slots)
            await forget_prefixes(servers)
            tools = await with_tools(served, chat, toolbox, scale, in_flight, f"x{multiple:g}")
            await forget_prefixes(servers)
            bare = await without_tools(served, tools, scale, slots)
            row = {
                "slots": slots,
                "in_flight": in_flight,
                "turns": len(tools.ended),
                "tokens_per_s": tools.rate(),
                "bare_tokens_per_s": bare.rate(),
            }
            row["ratio"] = row["tokens_per_s"] / row["bare_tokens_per_s"]
            rows.append(row)
            print(
                f"{slots:6} {in_flight:9} {row['turns']:6} {row['tokens_per_s']:10.0f} "
                f"{row['bare_tokens_per_s']:10.0f} {row['ratio']:6.2f}",
                flush=True,
            )
            if row["ratio"] >= BOUND:
                break
    assert warm.ended
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=tuple(SCALES))
    parser.add_argument("--slots", type=int, nargs="+")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    name = scale_of(options.scale)
    scale = SCALES[name]
    rows: list[dict[str, Any]] = []
    print(f"{device_name()}, {name}: turns of {scale.turn_tokens} tokens")
    print(" slots in flight  turns   tokens/s  no tools   ratio")
    with tempfile.TemporaryDirectory(prefix="bench-rollouts-") as directory:
        model = gpu_bench_trainer.build(name)
        model.save_pretrained(Path(directory) / "model")
        tiny_tokenizer().save_pretrained(Path(directory) / "model")
        gpu = model.device.type == "cuda"
        del model
        for slots in options.slots or scale.slots:
            rows += asyncio.run(on_server(Path(directory) / "model", slots, scale, gpu))
    if options.json is not None:
        enough = {row["slots"]: row["in_flight"] for row in rows if row["ratio"] >= BOUND}
        best = min(max(r["ratio"] for r in rows if r["slots"] == s) for s in {r["slots"] for r in rows})
        options.json.write_text(json.dumps({"rows": rows, "bound": BOUND, "ratio": best, "enough": enough}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
