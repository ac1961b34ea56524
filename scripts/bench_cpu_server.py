"""What a vLLM server on CPUs samples, and what it takes, by where its model is computed.

In a process beside the engine, as vLLM does by itself on CPUs, and in the engine's own, as managed servers
are started: seconds until it answers, sampled tokens per second of 32 turns at once, and the memory of all
its processes (PSS) after them.

    python scripts/bench_cpu_server.py MODEL [--turns 32] [--tokens 96] [--prompt 300] [--json FILE]

Exit code 1: the engine's own process samples less than the other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

import psutil

from sandbox_rl.policies.base import TurnSampling
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm.fleet import ManagedServers, SupervisedServers
from sandbox_rl.policies.vllm.policy import VLLMPolicy
from sandbox_rl.policies.vllm.server import ManagedServer
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.publication.weights import PublishedWeights

WAYS = {"beside": {"distributed-executor-backend": "mp"}, "own": {}}
"""Name → arguments of the server. `own` is what managed servers are started with."""
ARGUMENTS = {"dtype": "float32", "kv-cache-memory-bytes": 256 << 20, "max-model-len": 1024}
END = 0  # rare


def memory_mib() -> float:
    """PSS of all processes below this one: what they share is counted once."""
    below = psutil.Process().children(recursive=True)
    return sum(process.memory_full_info().pss for process in below) / 2**20


def measure(way: str, options: argparse.Namespace) -> dict[str, float]:
    """Start one, have it sample, after a little to warm it up, and end it."""
    settings = VLLMSettings(type="vllm", arguments=ARGUMENTS | WAYS[way])
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, LoopThread() as loop:
        log = Path(folder) / "log"
        one = ManagedServer(settings, model=str(options.model), log=log, transfer="shm", gpu=False)
        servers = ManagedServers([one])
        weights = PublishedWeights(servers, loop)
        supervised = SupervisedServers(servers, weights, restarts=0)
        policy = VLLMPolicy(supervised, settings, end_ids=frozenset({END}), version=weights.version)

        async def turn(number: int, tokens: int) -> int:
            async with policy.session(str(number)) as session:
                sampling = TurnSampling(max_tokens=tokens, seed=number)
                prompt = range(100, 100 + options.prompt)  # the same for all, as in a group
                return len((await session.act(list(prompt), sampling, timeout=600)).token_ids)

        async def turns(tokens: int) -> int:
            return sum(await asyncio.gather(*(turn(number, tokens) for number in range(options.turns))))

        with loop.entered(policy):
            up = time.monotonic() - started
            loop.run(turns(2))
            started = time.monotonic()
            tokens = loop.run(turns(options.tokens))
            took = time.monotonic() - started
            found = {"start_s": up, "tokens_per_s": tokens / took, "pss_mib": memory_mib()}
            weights.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--turns", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--prompt", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {}
    for way in WAYS:
        found[way] = measure(way, options)
        print(f"{way:7}", *(f"{name} {value:.1f}" for name, value in found[way].items()), flush=True)
    ratio = found["own"]["tokens_per_s"] / found["beside"]["tokens_per_s"]
    print(f"in the engine's own process {ratio:.2f} x the tokens per second")
    if options.json:
        options.json.write_text(json.dumps(found | {"ratio": ratio}, indent=1))
    return 0 if ratio >= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
