"""Episodes with faults against the same without: nothing lost, nothing twice, nothing left, same rewards.

    .venv/bin/python scripts/fault_figure.py --episodes 1000

Of the tries of an episode 5 % lose their sandbox and 2 % have one that hangs. A third of the way the trainer
is killed (SIGKILL) and started again with --resume; at two thirds the policy's server is killed. Ends with 1
if an episode is lost or used twice, if `sandbox-rl check` finds fault with the run, if anything is left of
it, or if an advantage of a group without faults differs from the run without any.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import soak_run
from soak_run import GROUP, Trainer, ended, left_over, prepare, servers, tree

DONE_IN_PART = 3
CHAOS = {"share": 0.07, "kinds": {"sandbox_killed": 5.0, "sandbox_hangs": 2.0}}


def train(recipe: Path, steps: int, *, kills: bool, minutes: float) -> Trainer:
    """To the end; with `kills`, the trainer and then the server are killed on the way."""
    trainer = Trainer(recipe, log=recipe.parent / "log.txt")
    planned = [(steps // 3, "trainer"), (2 * steps // 3, "server")] if kills else []
    deadline = time.monotonic() + 60 * minutes
    with ended(trainer):
        trainer.start()
        while time.monotonic() < deadline:
            time.sleep(0.2)
            if trainer.code == DONE_IN_PART and kills:
                print(f"the run stopped by itself after {trainer.updates()} updates", flush=True)
                trainer.start()
            if trainer.code is not None:
                break
            if planned and trainer.updates() >= planned[0][0]:
                _, whom = planned.pop(0)
                if whom == "trainer":
                    trainer.kill()
                    trainer.wait(30)
                    trainer.start()
                else:
                    for pid in servers(tree(trainer.pids[-1])):
                        os.kill(pid, signal.SIGKILL)
                print(f"killed the {whom} after {trainer.updates()} updates", flush=True)
        if trainer.code != 0 or planned:
            print((recipe.parent / "log.txt").read_text()[-2000:])
            raise SystemExit(f"fault_figure: the run ended with {trainer.code}")
    return trainer


def used(run: Path) -> tuple[dict[tuple[int, int], tuple[str, float | None]], int]:
    """(group, sample) → how it ended and its advantage; and how many were there twice."""
    from sandbox_rl.ledger import read_ledger

    found: dict[tuple[int, int], tuple[str, float | None]] = {}
    twice = 0
    for update in {update.number: update for update in read_ledger(run / "ledger.jsonl")}.values():
        for group in update.groups:
            for index, sample in enumerate(group.samples):
                twice += (group.number, index) in found
                found[group.number, index] = (sample.end.value, sample.advantage)
    return found, twice


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=30, help="what one run may take at most")
    arguments = parser.parse_args()
    groups = 8
    steps = -(-arguments.episodes // (groups * GROUP))
    scheduled = steps * groups * GROUP
    with tempfile.TemporaryDirectory(prefix="figure-") as folder:
        results = []
        for name, blocks in (("clean", {}), ("faulty", {"chaos": CHAOS})):
            recipe = prepare(Path(folder) / name, mode="sync", steps=steps, groups=groups, **blocks)
            started = time.monotonic()
            trainer = train(recipe, steps, kills=name == "faulty", minutes=arguments.minutes)
            print(f"{name}: {scheduled} episodes in {time.monotonic() - started:.0f} s", flush=True)
            assert trainer.run is not None
            results.append((trainer, *used(trainer.run)))
        (_, clean, _), (trainer, faulty, twice) = results
        check = subprocess.run(
            [sys.executable, "-m", "sandbox_rl.cli", "check", str(trainer.run)],
            cwd=soak_run.REPOSITORY, capture_output=True, text=True, check=False,
        )  # fmt: skip
        said = (trainer.recipe.parent / "log.txt").read_text(errors="replace")
        injected = Counter(re.findall(r"injected fault: (\w+) \(", said))
        touched = {group for (group, _), (end, _) in faulty.items() if end == "not_judged"}
        compared = [key for key in clean if key[0] not in touched]
        differ = [key for key in compared if clean[key][1] != faulty.get(key, ("", None))[1]]
        lost = scheduled - len(faulty)
        left = {kind: things for kind, things in left_over(trainer).items() if things}
    print(f"injected: {dict(injected)}")
    print(f"lost {lost}, twice {twice}, not judged {sum(e == 'not_judged' for e, _ in faulty.values())}")
    equal = len(compared) - len(differ)
    print(f"advantages in groups without faults: {equal} of {len(compared)} as in the run without any")
    print(f"check: exit code {check.returncode}: {(check.stdout + check.stderr).strip().splitlines()[-1:]}")
    print(f"left over: {left or 'nothing'}")
    raise SystemExit(int(bool(lost or twice or differ or check.returncode or left)))


if __name__ == "__main__":
    main()
