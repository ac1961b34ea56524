"""`sandbox-rl doctor`: what is missing is named with its cost and the fix."""

from __future__ import annotations

import json
import sys

import pytest
from packaging.requirements import Requirement

from sandbox_rl.preflight.doctor import examine, judge_package
from tests import prepared


@pytest.mark.parametrize(
    ("requirement", "installed", "state", "fix"),
    [
        ("torch>=2.11", "2.13.0+cpu", "ok", ""),
        ("torch>=2.11", "2.10.0", "lack", "pip install 'torch>=2.11'"),
        ("torch>=2.11", None, "lack", "pip install 'torch>=2.11'"),
        ("trl>=1.16.0,<1.17", "1.17.0", "lack", "pip install 'trl<1.17,>=1.16.0'"),
        ("vllm>=0.26,<0.33", None, "note", "pip install 'sandbox-rl[vllm]'"),
        ("vllm>=0.26,<0.33", "0.40.1", "lack", "pip install 'vllm<0.33,>=0.26'"),
        ("vllm>=0.26,<0.33", "0.31.0.dev7", "ok", ""),
    ],
)
def test_versions_are_judged_by_what_the_package_asks_for(requirement, installed, state, fix):
    found = judge_package(Requirement(requirement), installed)
    assert (found.state, found.fix) == (state, fix)
    assert bool(found.cost) == (state != "ok")


async def test_everything_that_is_missing_has_a_cost_and_a_fix(tmp_path):
    found = await examine(tmp_path / "not" / "there")
    assert {"python", "torch", "trl", "gpu", "sandboxes", "disk", "loopback"} <= {f.name for f in found}
    for finding in found:
        assert finding.found
        assert bool(finding.cost) == bool(finding.fix) == (finding.state != "ok"), finding
    assert not (tmp_path / "not").exists()


def test_scripts_are_told_by_the_exit_code():
    command = [sys.executable, "-m", "sandbox_rl", "doctor", "--json"]
    done = prepared.run(command)
    states = [finding["state"] for finding in json.loads(done.stdout)]
    assert done.returncode == int("lack" in states)
