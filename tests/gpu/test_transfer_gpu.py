"""Published weights are what a server on a card samples from: CUDA handles, and NCCL to another card."""

from __future__ import annotations

import pytest
import torch

from tests.vllm.conftest import save_tiny, served
from tests.vllm.test_transfer import parity

SAME, DIFFERENT = 0.02, 0.05
"""bfloat16 on both sides differs by some 0.005 nats per token; a disturbed model by more than 0.1."""

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(600)]


def in_turn(tmp_path, transfer: str, card: str, *, tied: bool) -> None:
    run = served(
        save_tiny(tmp_path / "model", tied=tied), None, tmp_path / "vllm.log", transfer=transfer, card=card
    )
    on = next(run)
    try:
        parity(on, same=SAME, different=DIFFERENT)
        parity(on, same=SAME, different=DIFFERENT)
    finally:
        assert next(run, None) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("transfer", ["ipc", "shm"])
def test_on_one_card(tmp_path, transfer, tied):
    in_turn(tmp_path, transfer, "0", tied=tied)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA cards")
def test_on_another_card(tmp_path):
    in_turn(tmp_path, "nccl", "1", tied=True)
