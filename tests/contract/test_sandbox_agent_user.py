"""The embedded backend run by an ordinary user: no cgroups, the watchdog, the same promises."""

import pytest

from .ordinary_user import run_as_ordinary_user

SCRIPT = """
import asyncio, json
from sandbox_rl.sandboxes.embedded import EmbeddedBackend
from sandbox_rl.sandboxes.cases import ALL_CASES, CONTROLS
from sandbox_rl.preflight.self_check import check_sandboxes

PIECES = 'python3 -c "import time; b = bytearray(250 << 20); time.sleep(10)" & '

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
                result = await sandbox.exec(command, timeout=60)
                found[name] = (result.stdout.head + result.stderr.head).decode()
    wanted = ("RES-01", "RES-03", "RES-08", "ISO-05", "ISO-13", "ISO-14", "IO-18")
    cases = [case for case in (*CONTROLS, *ALL_CASES) if case.id in wanted]
    rows = [row async for row in check_sandboxes(lambda _: EmbeddedBackend(), cases)]
    found["failed"] = [f"{row.case}: {row.observed}" for row in rows if row.verdict != "pass"]
    found["ran"] = len(rows)
    print(json.dumps(found))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    return run_as_ordinary_user(SCRIPT)


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
