"""Published weights are what a server on a card samples from: CUDA handles, and NCCL to another card."""

from __future__ import annotations

import pytest
import torch

from tests.vllm.conftest import save_tiny, served
from tests.vllm.support import PROMPT, logprobs
from tests.vllm.test_transfer import parity, updated_in_turns

SAME, DIFFERENT = 0.02, 0.05
"""bfloat16 on both sides differs by some 0.005 nats per token; a disturbed model by more than 0.1."""
TURNS = 24
"""Frozen by one publication: a single token's log-prob says little in bfloat16, their mean does."""

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(600)]


def in_turn(tmp_path, monkeypatch, transfer: str, card: str, *, tied: bool) -> None:
    run = served(
        save_tiny(tmp_path / "model", tied=tied), None, tmp_path / "vllm.log", transfer=transfer, card=card
    )
    on = next(run)
    try:
        parity(on, same=SAME, different=DIFFERENT)
        parity(on, same=SAME, different=DIFFERENT)
        labels(on)
        # A layer's weights in several parts: the model has some 1 MiB.
        monkeypatch.setattr("sandbox_rl.training.publication.transports.PART_BYTES", 1 << 15)
        parity(on, same=SAME, different=DIFFERENT)
    finally:
        assert next(run, None) is None


def labels(on) -> None:
    """The old model has sampled the tokens before the switch, the last one too, and none after it."""
    before, version, actions = updated_in_turns(on, *range(TURNS))
    divided = [action for action in actions if action.weight_switches]
    assert len(divided) > TURNS / 2
    last, first = [], []
    for action in divided:
        ((switch, after),) = action.weight_switches
        assert after == version + 1
        assert action.weight_version == version
        differs = (logprobs(before, PROMPT, action.token_ids) - torch.tensor(action.logprobs)).abs()
        assert differs[:switch].mean() < SAME
        assert differs[switch:].mean() > DIFFERENT
        last.append(differs[switch - 1])
        first.append(differs[switch])
    assert torch.stack(last).mean() < SAME
    assert torch.stack(first).mean() > DIFFERENT


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("transfer", ["ipc", "shm"])
def test_on_one_card(tmp_path, monkeypatch, transfer, tied):
    in_turn(tmp_path, monkeypatch, transfer, "0", tied=tied)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA cards")
def test_on_another_card(tmp_path, monkeypatch):
    in_turn(tmp_path, monkeypatch, "nccl", "1", tied=True)
