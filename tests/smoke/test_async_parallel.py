"""Asynchronous training on two ranks: one update at a time for both, and one end."""

from __future__ import annotations

import pytest
import torch

from tests.smoke.async_support import PlayedRollouts, make_async_trainer
from tests.smoke.support import RecordGradients
from tests.smoke.test_launch import in_two_processes


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(directory, name → what rank 0 and rank 1 said)."""
    directory = tmp_path_factory.mktemp("parallel")
    in_two_processes("async_parallel", directory)
    said: dict[str, dict[int, str]] = {}
    for path in directory.glob("*.txt"):
        name, _, rank = path.stem.partition("-")
        said.setdefault(name, {})[int(rank)] = path.read_text()
    return directory, said


def test_the_gradient_is_that_of_one_rank(ran, tmp_path):
    directory, said = ran
    both = [torch.load(directory / "gradient" / f"gradient-{rank}.pt") for rank in range(2)]
    recorded = RecordGradients()
    alone = make_async_trainer(
        tmp_path, PlayedRollouts(), callbacks=[recorded], token_budget=100, max_staleness=0, max_steps=1
    )
    alone.train()
    assert said["gradient"][0] == f"{len(alone.progress.behind)} groups"
    for name, gradient in recorded.steps[0].items():
        assert torch.equal(both[0][name], both[1][name]), name
        assert (gradient - both[0][name]).abs().max() <= 1e-6 + 1e-4 * gradient.abs().max(), name


def test_both_ranks_take_the_same_updates(ran):
    _, said = ran
    assert said["whole"][0] == said["whole"][1]
    assert said["whole"][0].startswith("6 ")


def test_a_signal_to_the_rank_without_rollouts_saves_and_ends_both(ran):
    _, said = ran
    assert said["signal"][0] == said["signal"][1]
    assert "checkpoint-2 True [True]" in said["signal"][0]


@pytest.mark.parametrize(
    ("what", "why"), [("rollouts", "the rollouts are over"), ("servers", "the servers refuse")]
)
def test_a_failure_that_one_rank_sees_ends_both(ran, what, why):
    _, said = ran
    steps = [text.split()[0] for text in said[what].values()]
    assert steps[0] == steps[1]
    assert all(why in text for text in said[what].values())
    assert what == "rollouts" or steps[0] == "2"
