"""Episodes in real sandboxes on a real server: many at once, and every token accounted for."""

from __future__ import annotations

import pytest

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.sandboxes.config import EmbeddedSettings
from sandbox_rl.sandboxes.embedded import EmbeddedBackend
from sandbox_rl.types import StopReason, Task
from tests.unit.rig import make_engine
from tests.vllm.support import logprobs


def test_sixty_four_at_once(shared):
    """A policy of random weights writes nonsense: data, no fault of ours."""
    engine = make_engine(
        shared.policy,
        backend=EmbeddedBackend(settings=EmbeddedSettings()),
        episode={"max_turns": 2, "max_tokens": 600, "turn_tokens": 12, "timeout_s": 120},
        rollout={"concurrency": 64, "retries": 0},
    )
    requests = [
        EpisodeRequest(f"e{i}", Task(id=f"t{i}", prompt=f"What is {i} + 1?", answer=str(i + 1)), seed=i)
        for i in range(64)
    ]

    async def run():
        # The policy is entered already; it lives on for other tests.
        async with engine.backend, engine.scoring:
            return await engine.run(requests)

    rollouts = shared.loop.run(run())
    assert not [r for r in rollouts if r.trajectory.stop is StopReason.INFRA_FAULT]
    assert all(r.trajectory.turns for r in rollouts)
    assert sum(len(r.trajectory.turns) for r in rollouts) > 100
    for rollout in rollouts:
        trajectory = rollout.trajectory
        # What would be trained on, under the trainer's own model: the log-prob of every sampled token.
        ours = logprobs(shared.model, trajectory.prompt_ids, trajectory.completion_ids)
        for index, sampled in enumerate(trajectory.action_mask):
            if sampled:
                assert ours[index].item() == pytest.approx(trajectory.logprobs[index], abs=1e-4)
        assert trajectory.completion_ids[: len(trajectory.turns[0].action.token_ids)] == (
            trajectory.turns[0].action.token_ids
        )
    assert len({r.trajectory.prompt_ids for r in rollouts}) == 64
