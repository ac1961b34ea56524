"""Every case fails on the weak backend, or it is listed in `weak_cases.py` with the reason."""

import asyncio
import itertools
import json
import shutil

import pytest

from sandbox_rl.sandboxes.cases import ALL_CASES

from .container import READY, REPOSITORY, container_command
from .weak_cases import ALONE, NOT_RUN, PASSING

_PIPE = asyncio.subprocess.PIPE
_CONTAINER_S = 130.0
_CONTAINERS = 44
_AT_ONCE = 22
_PATIENCE = "0.2"


async def _problems_of(case_ids: tuple[str, ...], free: asyncio.Semaphore) -> dict[str, list[str]]:
    command = container_command("weak", _PATIENCE, "1", "0", *case_ids)
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
            async with asyncio.timeout(_CONTAINER_S):
                stands = (await process.stdout.readline()).decode().strip() == READY
                async for line in process.stdout:
                    report = json.loads(line)
                    found[report["id"]] = report["problems"]
                    missing.discard(report["id"])
                    if not missing:
                        break  # what a case has left behind may keep the container from ending
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
        raise AssertionError(f"no container for {case_ids}: {error[-500:]}")
    return found


@pytest.fixture(scope="module")
def weak_problems() -> dict[str, list[str]]:
    if shutil.which("unshare") is None:
        pytest.fail("the weak backend needs `unshare` of util-linux to be isolated")

    async def run() -> dict[str, list[str]]:
        free = asyncio.Semaphore(_AT_ONCE)
        ids = [case.id for case in ALL_CASES if case.id not in NOT_RUN and case.id not in ALONE]
        parts = [tuple(ids[start::_CONTAINERS]) for start in range(_CONTAINERS)] + [(case,) for case in ALONE]
        found = await asyncio.gather(*(_problems_of(part, free) for part in parts))
        return dict(itertools.chain.from_iterable(part.items() for part in found))

    return asyncio.run(run())


@pytest.mark.parametrize("case_id", [case.id for case in ALL_CASES if case.id not in NOT_RUN])
def test_case_fails_on_the_weak_backend(case_id: str, weak_problems: dict[str, list[str]]) -> None:
    problems = weak_problems[case_id]
    if case_id in PASSING:
        assert not problems, f"{case_id} fails now: remove it from PASSING: {problems}"
    else:
        assert problems, f"{case_id} passes on a backend without any isolation: it tests nothing"


def test_lists_name_cases() -> None:
    known = {case.id for case in ALL_CASES}
    assert PASSING.keys() | NOT_RUN.keys() <= known
    assert not PASSING.keys() & NOT_RUN.keys()
