"""When the audit of updates judges how far weights have moved."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sandbox_rl.audit.alarms import AlarmName, Alarms
from sandbox_rl.audit.updates import UpdateAudit


def lost_update_is_named(factor: float | None) -> bool:
    """Whether an update that bfloat16 cannot hold is, at this part of the rate; None: without a schedule."""
    model = torch.nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
    torch.nn.init.ones_(model.weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0)
    if factor is not None:
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: factor)
    alarms = Alarms()
    audit = UpdateAudit(alarms)
    args, state = SimpleNamespace(deepspeed_plugin=None, world_size=1), SimpleNamespace(global_step=0)
    audit.on_train_begin(args, state, None, model=model)
    model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    audit.on_pre_optimizer_step(args, state, None, optimizer=optimizer)
    optimizer.step()
    audit.on_optimizer_step(args, state, None, optimizer=optimizer)
    assert {alarm.name for alarm in alarms.raised} <= {AlarmName.UPDATES_VANISH}
    return bool(alarms.raised)


@pytest.mark.parametrize(("factor", "judged"), [(1.0, True), (0.3, True), (0.2, False), (0.0, False)])
def test_the_ends_of_a_schedule_are_not_judged(factor, judged):
    """There a step may be below the rounding of float32, as it is meant to be next to nothing."""
    assert lost_update_is_named(factor) is judged


def test_without_a_schedule_every_step_is_judged():
    assert lost_update_is_named(None)
