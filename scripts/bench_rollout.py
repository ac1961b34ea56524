"""How close the rollout engine comes to its bound: the slowest single episode.

64 scripted episodes of up to 8 turns with log-normal tool times (mean 0.5 s) run all at once, so that a
perfect engine needs exactly as long as its slowest episode. Overhead is what the engine adds per turn
when neither the policy nor the tools take any time.

    python scripts/bench_rollout.py [--episodes 64] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path

from sandbox_rl.agents.base import EpisodeRequest, EpisodeSettings
from sandbox_rl.agents.tokens import TokenAgent
from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.fakes import RecordingBackend, exec_ok
from sandbox_rl.policies.base import Sampling
from sandbox_rl.policies.scripted import ScriptedPolicy
from sandbox_rl.rewards.places import PROGRAM
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.rollout.engine import RolloutEngine
from sandbox_rl.rollout.settings import RolloutSettings
from sandbox_rl.sandboxes.program import ProgramSandboxes
from sandbox_rl.tools.toolbox import make_toolbox
from sandbox_rl.training.tiny import tiny_tokenizer
from sandbox_rl.types import ExecResult, Message, StopReason, Task, ToolCall

MEAN_TOOL_S = 0.5
SIGMA = 0.8  # of the log: the slowest of 64 tools takes some seconds
REQUIRED_RATIO = 1.1
REQUIRED_OVERHEAD_MS = 2.0


def plan(episodes: int, seed: int) -> dict[str, list[float]]:
    """Episode id → seconds of each of its tool calls."""
    rng = random.Random(seed)
    mu = -(SIGMA**2) / 2  # makes the mean of the log-normal exactly 1
    return {
        f"e{i:03d}": [MEAN_TOOL_S * rng.lognormvariate(mu, SIGMA) for _ in range(rng.randint(1, 7))]
        for i in range(episodes)
    }


async def measure(times: dict[str, list[float]], *, sleep: bool) -> tuple[float, int]:
    """Wall seconds and turns of running all episodes at once."""
    toolbox = make_toolbox()
    chat = ChatFormat.from_tokenizer(tiny_tokenizer(), toolbox.schemas)

    def script(episode_id: str, turn: int, ids: object) -> tuple[int, ...]:
        seconds = times[episode_id]
        if turn < len(seconds):
            return chat.render_call("", [ToolCall("execute_bash", {"command": f"sleep {seconds[turn]}"})])
        return chat.render_call("", [ToolCall("submit", {})])

    async def tool(command: str) -> ExecResult:
        if sleep:
            await asyncio.sleep(float(command.split()[1]))
        return exec_ok("done\n")

    engine = RolloutEngine(
        agent=TokenAgent(ScriptedPolicy(script), chat),
        backend=RecordingBackend(answer_exec=tool),
        scoring=ScoringPool(ProgramSandboxes(PROGRAM, memory_mb=2048)),
        toolbox=toolbox,
        render=lambda task: (Message("user", task.prompt),),
        episode=EpisodeSettings(max_turns=8, timeout_s=120),
        sampling=Sampling(),
        settings=RolloutSettings(concurrency=len(times)),
    )
    requests = [
        EpisodeRequest(name, Task(id=name, prompt="Sleep.", answer="42"), seed=i)
        for i, name in enumerate(times)
    ]
    async with engine:
        started = time.perf_counter()
        rollouts = await engine.run(requests)
        wall = time.perf_counter() - started
    assert all(r.trajectory.stop is StopReason.SUBMITTED for r in rollouts)
    return wall, sum(len(r.trajectory.turns) for r in rollouts)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    times = plan(options.episodes, options.seed)
    bound = max(sum(seconds) for seconds in times.values())
    wall, turns = asyncio.run(measure(times, sleep=True))
    empty, _ = asyncio.run(measure(times, sleep=False))
    result = {
        "episodes": options.episodes,
        "turns": turns,
        "bound_s": bound,
        "wall_s": wall,
        "ratio": wall / bound,
        "overhead_ms_per_turn": 1000 * empty / turns,
    }
    print(
        f"{options.episodes} episodes, {turns} turns, tool time {sum(map(sum, times.values())):.1f} s in all"
    )
    print(f"slowest episode (bound)  {bound:8.3f} s")
    print(
        f"wall time                {wall:8.3f} s   ratio {result['ratio']:.3f}   required <= {REQUIRED_RATIO}"
    )
    print(
        f"engine overhead          {result['overhead_ms_per_turn']:8.3f} ms per turn"
        f"   required < {REQUIRED_OVERHEAD_MS}"
    )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    held = result["ratio"] <= REQUIRED_RATIO and result["overhead_ms_per_turn"] < REQUIRED_OVERHEAD_MS
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
