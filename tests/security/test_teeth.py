"""Every case fails on the weak backend, or it is listed in `teeth.py` with the reason."""

import asyncio
import itertools
import json
import shutil

import pytest

from sandbox_rl.sandboxes.cases import ALL_CASES

from .room import READY, REPOSITORY, room_command
from .teeth import ALONE, NO_TEETH, NOT_RUN

_PIPE = asyncio.subprocess.PIPE
_ROOM_S = 75.0
_ROOMS = 44
_AT_ONCE = 22
_PATIENCE = "0.2"


async def _problems_in_a_room(case_ids: tuple[str, ...], free: asyncio.Semaphore) -> dict[str, list[str]]:
    command = room_command("weak", _PATIENCE, "1", "0", *case_ids)
    stands = False
    found = {case_id: ["the weak backend's process died or never came back"] for case_id in case_ids}
    missing = set(case_ids)
    async with free:
        # Standard input stays open and silent, as a terminal that nobody types at.
        process = await asyncio.create_subprocess_exec(
            *command, cwd=REPOSITORY, stdin=_PIPE, stdout=_PIPE, stderr=_PIPE, limit=1 << 22
        )
        errors = asyncio.create_task(process.stderr.read())
        try:
            async with asyncio.timeout(_ROOM_S):
                stands = (await process.stdout.readline()).decode().strip() == READY
                async for line in process.stdout:
                    report = json.loads(line)
                    found[report["id"]] = report["problems"]
                    missing.discard(report["id"])
                    if not missing:
                        break  # what a case has left behind may keep the room from its own end
                error = "" if stands else (await errors).decode(errors="replace")
        except TimeoutError:
            error = ""
        finally:
            errors.cancel()
            if process.returncode is None:
                process.kill()
            await process.wait()
            process.stdin.close()
    if not stands:
        raise AssertionError(f"no room for {case_ids}: {error[-500:]}")
    return found


@pytest.fixture(scope="module")
def weak_problems() -> dict[str, list[str]]:
    if shutil.which("unshare") is None:
        pytest.fail("the weak backend needs `unshare` of util-linux to be locked up")

    async def run() -> dict[str, list[str]]:
        free = asyncio.Semaphore(_AT_ONCE)
        ids = [case.id for case in ALL_CASES if case.id not in NOT_RUN and case.id not in ALONE]
        rooms = [tuple(ids[start::_ROOMS]) for start in range(_ROOMS)] + [(case_id,) for case_id in ALONE]
        found = await asyncio.gather(*(_problems_in_a_room(room, free) for room in rooms))
        return dict(itertools.chain.from_iterable(part.items() for part in found))

    return asyncio.run(run())


@pytest.mark.parametrize("case_id", [case.id for case in ALL_CASES if case.id not in NOT_RUN])
def test_case_bites_the_weak_backend(case_id: str, weak_problems: dict[str, list[str]]) -> None:
    problems = weak_problems[case_id]
    if case_id in NO_TEETH:
        assert not problems, f"{case_id} bites now: remove it from NO_TEETH: {problems}"
    else:
        assert problems, f"{case_id} passes on a backend without any isolation: it tests nothing"


def test_lists_name_cases() -> None:
    known = {case.id for case in ALL_CASES}
    assert NO_TEETH.keys() | NOT_RUN.keys() <= known
    assert not NO_TEETH.keys() & NOT_RUN.keys()
