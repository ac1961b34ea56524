"""When the audit of updates judges how far weights have moved."""

from __future__ import annotations

import pytest
import torch

from sandbox_rl.audit.updates import _starts_or_ends


@pytest.mark.parametrize(("factor", "left_out"), [(1.0, False), (0.3, False), (0.2, True), (0.0, True)])
def test_the_ends_of_a_schedule_are_not_judged(factor, left_out):
    """There a step may be below the rounding of float32, as it is meant to be next to nothing."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=1e-6)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: factor)
    assert _starts_or_ends(optimizer) is left_out


def test_without_a_schedule_every_step_is_judged():
    assert not _starts_or_ends(torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=1e-9))
