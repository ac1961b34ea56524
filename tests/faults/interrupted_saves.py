"""A tiny checkpoint whose save is cut or failed at its system calls; run by test_checkpoint_writes.py.

`python -m tests.faults.interrupted_saves DIRECTORY EVERY` prints a line for each case, and ends with 1 if
one of them left something else than the checkpoint before or the new one, byte by byte.
"""

from __future__ import annotations

import errno
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from sandbox_rl.errors import UserError
from sandbox_rl.training.checkpoints import last_intact
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from tests.faults.syscalls import Call, supervised
from tests.smoke.support import given_reward, make_rollout, make_trainer, rows_of

REFUSED = 2
FAULTS = {"no space": errno.ENOSPC, "device error": errno.EIO, "kill": 0}


def saving(trainer: SandboxGRPOTrainer, step: int) -> int:
    """The exit code of a process that saves now: 0, or 2 where one line says what the disk does."""
    random.seed(step)  # a fork seeds it anew, and its state is saved
    trainer.state.global_step = step
    try:
        trainer._save_checkpoint(trainer.model, None)
    except UserError:
        return REFUSED
    return 0


def files(checkpoint: Path) -> dict[str, bytes]:
    found = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in found}


def wrong(place: Path, code: int, fault: str, control: dict[str, bytes]) -> str | None:
    """What is not as promised after a fault."""
    expected = (-9,) if fault == "kill" else (0, REFUSED)
    if code not in expected:
        return f"exit code {code}"
    found, damaged = last_intact(place)
    if found is None or damaged:
        return f"{found} with {damaged}"
    if found.name == "checkpoint-3":
        now = files(found)
        differing = [name for name in control.keys() | now if control.get(name) != now.get(name)]
        return f"{differing} differ" if differing else None
    return "saved and not there" if code == 0 or found.name != "checkpoint-2" else None


def main() -> int:
    directory, every = Path(sys.argv[1]), int(sys.argv[2])
    rows = [make_rollout("ab"[i // 4], float(i % 2), seed=i) for i in range(8)]
    disable_progress_bar()
    before = directory / "before"
    trainer = make_trainer(
        before, lambda prompts, _: rows_of(rows), given_reward, cls=SandboxGRPOTrainer, save_total_limit=2
    )
    trainer.train()
    for step in (1, 2):
        assert saving(trainer, step) == 0

    def attempt(fault) -> tuple[Path, int, list[Call]]:
        place = directory / "case"  # checkpoints hold their place's name
        shutil.copytree(before, place)
        trainer.args.output_dir = str(place)
        return place, *supervised(lambda: saving(trainer, 3), place, fault)

    place, code, calls = attempt(lambda call: None)
    assert code == 0
    assert sorted(p.name for p in place.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    control = files(place / "checkpoint-3")
    print(f"{len(calls)} calls: {dict(Counter(call.name for call in calls))}")
    shutil.rmtree(place)
    failures = 0
    for number in range(0, len(calls), every):
        for name, code in FAULTS.items():
            place, ended, _ = attempt(lambda call, n=number, c=code: c if call.number == n else None)
            problem = wrong(place, ended, name, control)
            # The next save is not disturbed by what this one has left.
            trainer.args.output_dir = str(place)
            if problem is None and (supervised(lambda: saving(trainer, 4), place, lambda _: None)[0]):
                problem = "the next save failed"
            left = sorted(p.name for p in place.iterdir() if p.name.startswith("."))
            problem = problem or (f"left {left}" if left else None)
            failures += problem is not None
            print(f"{number:4} {calls[number].name:10} {name:12} {calls[number].path}: {problem or 'ok'}")
            shutil.rmtree(place)
    return min(1, failures)


if __name__ == "__main__":
    sys.exit(main())
