"""The embedded backend run by an ordinary user: no cgroups, the watchdog, the same promises."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import sandbox_rl

USER = 54_321  # nobody's
SCRIPT = """
import asyncio, json
from sandbox_rl.sandboxes.embedded import EmbeddedBackend
from sandbox_rl.sandboxes.cases import ALL_CASES, CONTROLS
from sandbox_rl.sandboxes.self_check import self_check

PIECES = 'python3 -c "import time; b = bytearray(250 << 20); time.sleep(4)" & '

async def main():
    async with EmbeddedBackend() as backend:
        found = {"tier": backend.info.tier, "lacks": backend.info.lacks}
        async with backend.sandbox({"q": b"?"}) as sandbox:
            for name, command in {
                "posture": "cat documents/q; id -u; wc -l </proc/self/uid_map; unshare -Ur true || echo no",
                "memory": PIECES * 3 + "wait -n; wait; echo survived",
                "inodes": "cd /tmp; for i in $(seq 30000); do : >$i || break; done 2>/dev/null; ls | wc -l",
                "processes": "ulimit -Hu",
            }.items():
                result = await sandbox.exec(command, timeout=30)
                found[name] = (result.stdout.head + result.stderr.head).decode()
    wanted = ("RES-01", "RES-03", "RES-08", "ISO-05", "ISO-13", "ISO-14", "IO-18")
    cases = [case for case in (*CONTROLS, *ALL_CASES) if case.id in wanted]
    rows = [row async for row in self_check(EmbeddedBackend, cases=cases, at_once=1)]
    found["failed"] = [f"{row.case}: {row.observed}" for row in rows if row.verdict != "pass"]
    found["ran"] = len(rows)
    print(json.dumps(found))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, object]]:
    """What the script found out; it runs on a copy of the package that everyone may read."""
    if os.geteuid() != 0:
        pytest.skip("the whole suite already runs as an ordinary user")
    directory = Path(tempfile.mkdtemp(prefix="ordinary-user-"))
    try:
        directory.chmod(0o755)
        shutil.copytree(Path(sandbox_rl.__file__).parent, directory / "sandbox_rl")
        (directory / "script.py").write_text(SCRIPT)
        paths = f"{directory}:{sysconfig.get_path('purelib')}"
        for interpreter in (sys.executable, "/usr/bin/python3"):
            try:
                tried = subprocess.run(
                    [interpreter, "-S", "-B", str(directory / "script.py")],
                    env={"PYTHONPATH": paths, "PATH": "/usr/bin:/bin", "HOME": "/"},
                    user=USER,
                    group=USER,
                    extra_groups=[],
                    cwd="/",
                    capture_output=True,
                    timeout=120,
                )
            except PermissionError:
                continue  # this interpreter lies where only root can go
            assert tried.returncode == 0, tried.stderr.decode()
            yield json.loads(tried.stdout)
            return
        pytest.skip("no interpreter here that an ordinary user can run")
    finally:
        shutil.rmtree(directory)


def test_tier_says_what_it_lacks(found: dict[str, object]) -> None:
    assert found["tier"] in ("namespaces+watchdog", "namespaces+cgroup")
    assert any("same host user" in str(sentence) for sentence in found["lacks"])  # type: ignore[attr-defined]


def test_same_posture(found: dict[str, object]) -> None:
    assert str(found["posture"]).startswith("?1000\n1\nno\n")


def test_watchdog_bounds_the_memory_of_all_processes_together(found: dict[str, object]) -> None:
    assert "Killed" in str(found["memory"])
    assert "survived" in str(found["memory"])


def test_inodes_and_processes_are_bounded(found: dict[str, object]) -> None:
    assert 10_000 < int(str(found["inodes"])) < 20_000
    assert found["processes"] == "128\n"


def test_cases_hold(found: dict[str, object]) -> None:
    assert found["failed"] == []
    assert found["ran"] == 7
