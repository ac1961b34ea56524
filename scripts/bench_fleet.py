"""What several managed servers bring, and what the death of one costs.

The shipped fake stands in the place of vLLM, each a process of its own: a turn takes `--delay` seconds of
waiting and no computing, and a server takes `--slots` turns at once, the others wait. So the figures are of
what is ours (placing episodes, HTTP, publishing, restarting), on any machine.

    rate      sampled tokens per second of one server and of several, with `--slots` episodes for each
    death     of the last server, while all sample: turns that were lost and sampled again, and how many of
              them were its own in flight; the weights that every server holds afterwards are verified

    python scripts/bench_fleet.py [--servers 2] [--json FILE]
    python scripts/bench_fleet.py --real      # vLLM itself, on the tiny model: about four minutes

Both fleets run at once and take turns, `--rounds` times for `--seconds`, after a warm-up that does not count:
whatever else slows the machine slows both. The ratio is the median of the rounds' ratios.

With `--real` servers share the machine's cores, so that several sample about what one does: `death` is left
out, and what is asked is whether several cost anything. One server gets as many episodes and seats as several
have together, and all cores, of which each of several gets its part, as in a run.

Exit code 1: several sample less than 0.95 times as much as so many (with `--real` 0.9 times as much as one),
or a death costs others a turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as the command line does, before torch is imported
os.environ.pop("OMP_NUM_THREADS", None)  # servers divide the cores

import torch

from sandbox_rl.policies.base import PolicySession, TurnSampling
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm.fleet import ManagedServers, SupervisedServers
from sandbox_rl.policies.vllm.policy import VLLMPolicy
from sandbox_rl.policies.vllm.server import ManagedServer
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.publication.payload import checksums_of
from sandbox_rl.training.publication.routes import verify
from sandbox_rl.training.publication.weights import PublishedWeights
from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer

BOUND = 0.95
"""Of the rate of as many servers by themselves."""
REAL_BOUND = 0.9
"""Of the rate of one, where all have the same cores."""
TURN_TOKENS = 8  # what the fake samples
REAL_TURN_TOKENS = 64
REAL_ARGUMENTS = {"dtype": "float32", "kv-cache-memory-bytes": 256 << 20, "max-model-len": 1024}
DEFAULTS = {"slots": (8, 32), "seconds": (5.0, 20.0), "rounds": (1, 3)}
"""Option → with the fake, with `--real`."""
WARM_UP = 0.25
"""Of `--seconds`."""
RESTART_S = 0.2  # less than a server takes to start again, more than a turn waits otherwise
PYTHON = """#!/bin/sh
case "$1" in -I) exec {python} "$@" ;; esac
while [ $# -gt 0 ]; do [ "$1" = --uds ] && socket=$2; shift; done
exec {python} -m sandbox_rl.policies.vllm.fake_server "$socket" {delay} {slots}
"""


class Model(torch.nn.Module):
    """A few weights that a number decides."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.Parameter(torch.zeros(64))

    def set(self, value: float) -> Model:
        """The same with other weights."""
        with torch.no_grad():
            self.norm.fill_(value)
        return self

    def checksums(self) -> dict[str, tuple[list[int], int]]:
        """Of what servers should hold."""
        return checksums_of({name: p.detach() for name, p in self.named_parameters()})


@dataclass(slots=True)
class Fleet:
    """Servers that run."""

    loop: LoopThread
    members: list[ManagedServer]
    supervised: SupervisedServers
    weights: PublishedWeights
    policy: VLLMPolicy


@dataclass(slots=True)
class Tally:
    """What the episodes saw.

    Attributes:
        lost: number of an episode → its turns that were sampled again.
        waiting: numbers of the episodes that wait for an answer, and for which server.
    """

    turns: int = 0
    tokens: int = 0
    lost: dict[int, int] = field(default_factory=dict)
    waiting: dict[int, object] = field(default_factory=dict)


@contextmanager
def fleet(servers: int, options: argparse.Namespace) -> Iterator[Fleet]:
    """So many servers, supervised, with published weights."""
    with tempfile.TemporaryDirectory(prefix="fleet") as folder, LoopThread() as loop:
        model, python = Path(folder) / "model", Path(folder) / "python"
        if options.real:
            tokenizer = tiny_tokenizer()
            tiny_model(tokenizer).save_pretrained(model)
            tokenizer.save_pretrained(model)
            seats = {"max-num-seqs": options.servers * options.slots // servers}
            settings = VLLMSettings(type="vllm", arguments=REAL_ARGUMENTS | seats)
        else:
            python.write_text(PYTHON.format(python=sys.executable, delay=options.delay, slots=options.slots))
            python.chmod(0o755)
            settings = VLLMSettings(type="vllm", python=str(python), backoff_s=0.05)
        members = [
            ManagedServer(
                settings,
                model=str(model),
                log=Path(folder) / f"{n}.log",
                transfer="shm",
                gpu=False,
                servers=servers,
            )
            for n in range(servers)
        ]
        managed = ManagedServers(members)
        weights = PublishedWeights(managed, loop, keeps=True)
        supervised = SupervisedServers(managed, weights, restarts=1)
        policy = VLLMPolicy(supervised, settings, end_ids=frozenset({2}), version=weights.version)
        with loop.entered(policy):
            yield Fleet(loop, members, supervised, weights, policy)
            weights.close()


async def episode(
    number: int, session: PolicySession, server: object, until: float, tally: Tally, tokens: int
) -> None:
    """Turn after turn, of so many tokens at most, to the deadline."""
    while time.monotonic() < until:
        tally.waiting[number] = server
        sampling = TurnSampling(max_tokens=tokens, seed=number)
        action = await session.act((5, 6, 7), sampling, timeout=120)
        del tally.waiting[number]
        tally.turns += 1
        tally.tokens += len(action.token_ids)
        tally.lost[number] = tally.lost.get(number, 0) + (action.lost_s > RESTART_S)


async def episodes(on: Fleet, options: argparse.Namespace, tally: Tally, seconds: float) -> None:
    """`--slots` episodes for each server until the time is over; as many on one where they share cores."""
    until = time.monotonic() + seconds
    tokens = REAL_TURN_TOKENS if options.real else TURN_TOKENS
    servers = options.servers if options.real else len(on.members)

    async def one(number: int) -> None:
        before = on.policy.loads
        async with on.policy.session(str(number)) as session:
            loads = zip(before, on.policy.loads, strict=True)
            own = next(i for i, (a, b) in enumerate(loads) if b["episodes"] > a["episodes"])
            await episode(number, session, on.members[own], until, tally, tokens)

    tasks = []
    for number in range(servers * options.slots):
        tasks.append(asyncio.ensure_future(one(number)))
        await asyncio.sleep(0)  # so that each sees where the one before it went
    await asyncio.gather(*tasks)


def rate(on: Fleet, options: argparse.Namespace, seconds: float) -> float:
    """Sampled tokens per second, to the last turn's end."""
    tally, started = Tally(), time.monotonic()
    on.loop.run(episodes(on, options, tally, seconds))
    return tally.tokens / (time.monotonic() - started)


def rates(options: argparse.Namespace) -> list[tuple[float, float]]:
    """Of one server and of several, for each round; every other round begins with the several."""
    found = []
    with fleet(1, options) as one, fleet(options.servers, options) as several:
        for on in (one, several):
            rate(on, options, WARM_UP * options.seconds)
        for number in range(options.rounds):
            order = (one, several) if number % 2 == 0 else (several, one)
            said = {id(on): rate(on, options, options.seconds) for on in order}
            found.append((said[id(one)], said[id(several)]))
    return found


def kill_child(supervisor: int) -> None:
    """SIGKILL to what a server's own supervisor has started."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)


def death(options: argparse.Namespace) -> dict[str, Any]:
    """Kill the last server while all sample, and publish while it is away."""
    model, tally, own = Model(), Tally(), -1

    with fleet(options.servers, options) as on:
        on.weights.publish(model.set(1.0), 1)
        dying = on.members[-1]

        async def kill_on_the_way() -> None:
            nonlocal own
            await asyncio.sleep(options.seconds / 3)
            child = dying.pid
            assert child is not None
            own = sum(server is dying for server in tally.waiting.values())
            kill_child(child)
            async with asyncio.timeout(60):
                while dying.pid == child:  # noqa: ASYNC110 (a process to wait for, not a task)
                    await asyncio.sleep(0.005)
            await asyncio.to_thread(on.weights.publish, model.set(2.0), 2)

        async def both() -> None:
            await asyncio.gather(episodes(on, options, tally, options.seconds), kill_on_the_way())
            await dying.recovered()
            for member in on.members:
                await verify(member.client, model.checksums())

        on.loop.run(both())
        return {"lost": sum(tally.lost.values()), "own_in_flight": own, "turns": tally.turns}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--slots", type=int, help="turns that a server samples at once (8; 32 with --real)")
    parser.add_argument("--delay", type=float, default=0.1, help="seconds of a turn")
    parser.add_argument("--seconds", type=float, help="of a round (5; 20 with --real)")
    parser.add_argument("--rounds", type=int, help="1; 3 with --real")
    parser.add_argument("--real", action="store_true", help="vLLM in the place of the fake")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    for name, values in DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, values[options.real])
    rounds = rates(options)
    for one, several in rounds:
        print(f"1 server {one:.0f} tokens/s, {options.servers} servers {several:.0f}: {several / one:.2f} x")
    ratio = statistics.median(several / one for one, several in rounds)
    print(f"several beside one: {ratio:.2f} x, the median of {len(rounds)}", flush=True)
    row: dict[str, Any] = {"rounds": rounds, "servers": options.servers, "slots": options.slots}
    row["ratio"] = ratio
    if options.real:
        if options.json:
            options.json.write_text(json.dumps(row, indent=1))
        return 0 if ratio >= REAL_BOUND else 1
    cost = death(options)
    print(
        f"a server killed: {cost['lost']} of {cost['turns']} turns sampled again, its own in flight were "
        f"{cost['own_in_flight']}; newest weights verified on all {options.servers}"
    )
    if options.json:
        options.json.write_text(json.dumps(row | cost, indent=1))
    fits = ratio >= BOUND * options.servers and cost["lost"] <= cost["own_in_flight"]
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
