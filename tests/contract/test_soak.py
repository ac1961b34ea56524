"""The soak and the benchmark of sandboxes see what lives: a look that finds nothing says "nothing left"."""

from __future__ import annotations

import os

import pytest

from sandbox_rl.sandboxes.embedded import EmbeddedBackend
from tests.contract.test_sandbox_agent import settles
from tests.unit.test_gpu_scripts import load


async def test_processes_and_control_groups_of_a_living_backend_are_seen(tmp_path):
    soak = load("soak_run")
    recipe = tmp_path / "sync.yaml"
    recipe.write_text(f"output_dir: {tmp_path}/runs\n")
    trainer = soak.Trainer(recipe, log=tmp_path / "log.txt")
    trainer.pids.append(os.getpid())
    before = soak.groups_of(*trainer.pids)  # of backends that other tests of this process share
    async with EmbeddedBackend() as backend:
        if not backend.info.tier.endswith("cgroup"):
            pytest.skip(f"no control groups: {backend.info.tier}")
        async with backend.sandbox() as sandbox:
            await sandbox.exec("true", timeout=30)
            below = soak.tree(os.getpid())
            assert soak.spawners(below)
            assert soak.sandboxes(below)
            groups = set(soak.left_over(trainer)["control groups"]) - set(before)
            assert {os.path.dirname(group) for group in groups} & groups  # a backend's, and a sandbox's
    assert await settles(lambda: not groups & set(soak.left_over(trainer)["control groups"]))
