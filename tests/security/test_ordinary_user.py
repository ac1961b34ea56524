"""Every case once more, with the backend run by an ordinary user: no cgroups, no root anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from sandbox_rl.sandboxes.cases import ALL_CASES, CONTROLS

from .conftest import USER
from .container import REPOSITORY

_KNOWN_LIMITS = {
    "RES-07": "only a cgroup bounds processor time, and an ordinary user may not make one",
    "CTL-06": "beside eight busy loops that nothing bounds, 4 s of processor time take as long as they take",
}


def python_for_everyone() -> str:
    """An interpreter that other users may start: this one, or the system's of the same version."""
    real = Path(os.path.realpath(sys.executable))
    if all(parent.stat().st_mode & 1 for parent in real.parents):
        return sys.executable
    system = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    if not os.path.exists(system):
        pytest.skip(f"other users can start neither {real} nor {system}; run the suite as an ordinary user")
    return system


def test_cases_as_an_ordinary_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    ids = [case.id for case in (*ALL_CASES, *CONTROLS) if case.id not in _KNOWN_LIMITS]
    who = {"user": USER, "group": USER, "extra_groups": []} if os.getuid() == 0 else {}
    libraries = os.pathsep.join([str(REPOSITORY), sysconfig.get_path("purelib")])
    ran = subprocess.run(
        [python_for_everyone(), "-m", f"{__package__}.driver", "embedded", "6", "8", "3", *ids],
        cwd=REPOSITORY,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": libraries,
            "HOME": "/tmp",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        timeout=570,
        check=False,
        **who,  # type: ignore[call-overload]
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    outcomes = {report["id"]: report["problems"] for report in map(json.loads, ran.stdout.splitlines())}
    assert outcomes.keys() == set(ids)
    assert not {case_id: problems for case_id, problems in outcomes.items() if problems}
