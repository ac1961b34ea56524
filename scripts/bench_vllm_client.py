"""What our vLLM client costs: time per turn beside the server's own, and how long it blocks the event loop.

The server is a fake in a process of its own that answers after a fixed delay, so the rest is ours (and the
fake's). Prints, against the bounds: per-turn overhead with 64 episodes at once (3 ms), and the 99th
percentile of the event loop's lag with prompts of 32,768 tokens (50 ms).

    python scripts/bench_vllm_client.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox_rl.http_client import Address
from sandbox_rl.policies.base import TurnSampling
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm.policy import VLLMPolicy
from sandbox_rl.policies.vllm.source import ExternalServers

EPISODES = 64
SHORT_S, LONG_S = 0.25, 2.0
"""Seconds that a turn takes in the server: 256 and 32 requests/s from 64 episodes."""
OVERHEAD_BOUND_MS = 3.0
LAG_BOUND_MS = 50.0


async def lag(samples: list[float], interval: float = 0.005) -> None:
    """How much later than asked for the loop wakes us, again and again."""
    while True:
        started = time.perf_counter()
        await asyncio.sleep(interval)
        samples.append(time.perf_counter() - started - interval)


async def measure(policy: VLLMPolicy, delay_s: float, prompt_tokens: int, turns: int) -> tuple[float, float]:
    """(overhead per turn, 99th percentile of the loop's lag), both in ms."""
    prompt = list(range(1000, 1000 + prompt_tokens))
    lags: list[float] = []
    watch = asyncio.create_task(lag(lags))

    async def episode(number: int) -> list[float]:
        # Spread, as episodes are: 64 requests in one instant would measure the fake's queue.
        await asyncio.sleep(delay_s * number / EPISODES)
        took = []
        async with policy.session(str(number)) as session:
            for turn in range(turns):
                started = time.perf_counter()
                await session.act(prompt, TurnSampling(max_tokens=64, seed=turn), timeout=60)
                took.append(time.perf_counter() - started)
        return took

    took = [t for ts in await asyncio.gather(*map(episode, range(EPISODES))) for t in ts]
    watch.cancel()
    overhead = statistics.median(took) - delay_s
    return 1000 * overhead, 1000 * statistics.quantiles(lags, n=100)[98]


@contextmanager
def fake_server(directory: Path, delay_s: float) -> Iterator[Path]:
    socket = directory / f"{delay_s}"
    server = subprocess.Popen(
        [sys.executable, "-m", "sandbox_rl.policies.vllm.fake_server", str(socket), str(delay_s)]
    )
    try:
        yield socket
    finally:
        server.terminate()
        server.wait()


async def on(socket: Path, delay_s: float, prompt_tokens: int, turns: int) -> tuple[float, float]:
    address = f"unix://{socket}"
    source = ExternalServers([Address.parse(address)], needed_context=1, tokenizer=None, startup_timeout_s=30)
    settings = VLLMSettings(type="vllm", engine="external", base_urls=(address,))
    async with VLLMPolicy(source, settings, end_ids=frozenset({2})) as policy:
        await measure(policy, delay_s, 256, 1)  # connections and code warm up
        return await measure(policy, delay_s, prompt_tokens, turns)


def main(quick: bool) -> int:
    with tempfile.TemporaryDirectory() as directory:
        with fake_server(Path(directory), SHORT_S) as socket:
            short, _ = asyncio.run(on(socket, SHORT_S, 1_024, 4 if quick else 20))
        with fake_server(Path(directory), LONG_S) as socket:
            _, lag_ms = asyncio.run(on(socket, LONG_S, 32_768, 2 if quick else 6))
    print(f"overhead per turn, {EPISODES} episodes, prompts of 1,024 tokens: {short:.2f} ms", end="")
    print(f" = {short / OVERHEAD_BOUND_MS:.2f} x the bound of {OVERHEAD_BOUND_MS:g} ms")
    print(f"event loop lag p99, {EPISODES} episodes, prompts of 32,768 tokens: {lag_ms:.2f} ms", end="")
    print(f" = {lag_ms / LAG_BOUND_MS:.2f} x the bound of {LAG_BOUND_MS:g} ms")
    return int(short > OVERHEAD_BOUND_MS or lag_ms > LAG_BOUND_MS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    sys.exit(main(parser.parse_args().quick))
