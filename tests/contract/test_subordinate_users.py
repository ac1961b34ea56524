"""Sandboxes are host users of their own also for an ordinary user with /etc/subuid, and in a container.

The accounts are files of ours in a mount namespace of the test's own; the machine's stay as they are.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sandbox_rl.sandboxes.spawner.users import largest_range

from .ordinary_user import USER, run_as_ordinary_user

FIRST, COUNT = 900_000, 65_536
SCRIPT = """
import asyncio, json, os
from sandbox_rl.sandboxes.embedded import EmbeddedBackend
from sandbox_rl.sandboxes.cases import ALL_CASES, CONTROLS
from sandbox_rl.preflight.self_check import check_sandboxes

POSSIBLE = {os.getuid(), *range(900_000, 900_000 + 65_536)}
MANY = (
    "import fcntl, os, time\\n"
    "kept = [os.pipe() for _ in range(80)]\\n"
    "try:\\n"
    "    for _, end in kept: fcntl.fcntl(end, 1031, 1 << 20)\\n"
    "except PermissionError: pass\\n"
    "kept += [os.pipe() for _ in range(40)]\\n"
    "print('HELD', fcntl.fcntl(kept[-1][1], 1032), flush=True); time.sleep(30)"
)
ONE = "import fcntl, os; print(fcntl.fcntl(os.pipe()[1], 1032))"

def users():
    # Host users of the agents of sandboxes that now run below this process.
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line, user = open(f"/proc/{pid}/cmdline", errors="replace").read(), int(status(pid, "Uid:"))
            if "/run/agent/python" in line and "bwrap" not in line and user in POSSIBLE:
                found.add(user)
        except OSError:
            pass
    return sorted(found)

def status(pid, name):
    with open(f"/proc/{pid}/status", errors="replace") as file:
        return next(line.split()[1] for line in file if line.startswith(name))

async def said(sandbox, command):
    result = await sandbox.exec(command, timeout=60)
    return (result.stdout.head + result.stderr.head).decode()

async def main():
    async with EmbeddedBackend() as backend:
        found = {"lacks": backend.info.lacks, "user": backend.info.details["user"]}
        async with backend.sandbox({"q": b"?"}) as one, backend.sandbox() as other:
            found["users"] = users()
            found["posture"] = await said(one, "cat documents/q; id -u; id -G; unshare -Ur true || echo no")
            found["before"] = await said(other, f'python3 -c "{ONE}"')
            held = "until grep -s HELD /tmp/said; do sleep .1; done"
            found["pipe within"] = await said(one, f"python3 -c \\"{MANY}\\" >/tmp/said 2>&1 & {held}")
            found["pipe beside"] = await said(other, f'python3 -c "{ONE}"')
        found["left"] = users()
    wanted = (WANTED)
    cases = [case for case in (*CONTROLS, *ALL_CASES) if case.id in wanted]
    rows = [row async for row in check_sandboxes(lambda _: EmbeddedBackend(), cases)]
    found["failed"] = [f"{row.case}: {row.observed}" for row in rows if row.verdict != "pass"]
    found["ran"] = [row.case for row in rows]
    print(json.dumps(found))

asyncio.run(main())
"""
DROP = f"""
import os, sys
os.setgroups([])
os.setresgid({USER}, {USER}, {USER})
os.setresuid({USER}, {USER}, {USER})
try:
    os.execv(sys.argv[1], sys.argv[1:])
except PermissionError:
    sys.exit(126)
"""
AS_ROOT_OF_A_CONTAINER = f"""
import ctypes, os, sys
ready, mapped = os.pipe(), os.pipe()
child = os.fork()
if child:
    os.read(ready[0], 1)
    for kind in ("gid", "uid"):
        with open(f"/proc/{{child}}/{{kind}}_map", "w") as file:
            file.write("0 {FIRST} {COUNT}\\n")
    os.write(mapped[1], b"!")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
if ctypes.CDLL(None).unshare(0x10020000):
    sys.exit("no user namespace")
os.write(ready[1], b"!")
os.read(mapped[0], 1)
os.setgroups([])
os.setresgid(0, 0, 0)
os.setresuid(0, 0, 0)
try:
    os.execv(sys.argv[1], sys.argv[1:])
except PermissionError:
    sys.exit(126)
"""
SHORT = """
import asyncio, json
from sandbox_rl.sandboxes.embedded import EmbeddedBackend

async def main():
    async with EmbeddedBackend() as backend, backend.sandbox({"q": b"?"}) as sandbox:
        told = await sandbox.exec("cat documents/q; id -u", timeout=60)
        found = {"lacks": backend.info.lacks, "told": told.stdout.head.decode()}
    print(json.dumps(found))

asyncio.run(main())
"""
CASES = ("RES-01", "RES-08", "RES-20b", "ISO-05", "ISO-13", "ISO-14", "ISO-15", "IO-18", "LIF-06", "CTL-01")


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command that runs the rest of its arguments as the user; the last one is what is done before."""
    if os.geteuid() != 0:
        pytest.skip("only root can make accounts for a test")
    if not shutil.which("newuidmap"):
        pytest.skip("newuidmap is not installed (package uidmap)")
    etc = tmp_path_factory.mktemp("etc")
    account = f"policy:x:{USER}:{USER}::/:/bin/sh\n"
    for name, text in {"passwd": account, "group": f"policy:x:{USER}:\n"}.items():
        (etc / name).write_text((Path("/etc") / name).read_text() + text)
    for name in ("subuid", "subgid"):
        (etc / name).write_text(f"someone:100000:65536\npolicy:{FIRST}:{COUNT}\n")
    binds = "; ".join(
        f"touch /etc/{name}; mount --bind {etc}/{name} /etc/{name}"
        for name in ("passwd", "group", "subuid", "subgid")
    )
    return ["unshare", "-m", "sh", "-c", f'{binds}; eval "$1"; shift; exec python3 -c "$0" "$@"', DROP]


@pytest.fixture(scope="module")
def found(accounts: list[str]) -> dict[str, Any]:
    script = SCRIPT.replace("(WANTED)", repr(CASES))
    return run_as_ordinary_user(script, before=[*accounts, ""])


def test_every_sandbox_is_a_host_user_of_its_own(found: dict[str, Any]) -> None:
    assert not [sentence for sentence in found["lacks"] if "same host user" in sentence]
    assert found["user"] == "one unused host uid per sandbox"
    assert len(found["users"]) == len(set(found["users"])) >= 2
    assert all(FIRST <= user < FIRST + COUNT for user in found["users"])


def test_same_posture(found: dict[str, Any]) -> None:
    assert found["posture"].startswith("?1000\n1000\nno\n")


def test_pipe_buffers_of_one_sandbox_are_not_anothers(found: dict[str, Any]) -> None:
    """Over its share a user's new pipes are small: the greedy sandbox sees it, its neighbour does not."""
    assert found["pipe beside"] == found["before"] == "65536\n"
    assert found["pipe within"] == "HELD 8192\n"


def test_cases_hold(found: dict[str, Any]) -> None:
    assert found["failed"] == []
    assert sorted(found["ran"]) == sorted(CASES)


def test_nothing_is_left(found: dict[str, Any]) -> None:
    assert len(found["left"]) <= 2  # spare ones


@pytest.mark.parametrize("broken", ["newgidmap", "newuidmap"])
def test_ids_that_are_not_available_are_reported_and_sandboxes_made_all_the_same(
    accounts: list[str], broken: str
) -> None:
    """As where set-user-id programs do nothing; the one that maps users runs when groups are mapped."""
    found = run_as_ordinary_user(SHORT, before=[*accounts, f"mount --bind /bin/false $(which {broken})"])
    assert found["told"] == "?1000\n"
    assert any(
        "same host user, since the ids of /etc/subuid cannot be mapped (exit code 1)" in sentence
        for sentence in found["lacks"]
    )


def test_root_of_a_container_uses_ids_of_the_container() -> None:
    """A rootless engine's root has 65,536 ids; those that the host's root would take do not exist there."""
    found = run_as_ordinary_user(SHORT, before=["python3", "-c", AS_ROOT_OF_A_CONTAINER])
    assert found["told"] == "?1000\n"
    assert not [sentence for sentence in found["lacks"] if "same host user" in sentence]


def test_longest_range_of_a_user_counts(tmp_path: Path) -> None:
    file = tmp_path / "subuid"
    file.write_text("# no line\nother:1:900000\npolicy:100:20\n54321:500:3000\npolicy:x:y\npolicy:7\n")
    assert largest_range(str(file), {"policy", "54321"}) == (500, 3000)
    assert largest_range(str(file), {"nobody"}) == (0, 0)
    assert largest_range(str(tmp_path / "none"), {"policy"}) == (0, 0)
