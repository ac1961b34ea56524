"""A run of both ways of training for some minutes, with something going wrong every few seconds.

    .venv/bin/python scripts/soak.py --minutes 60 [--mode sync|async|both] [--seed 0] [--every 20]
                                     [--chaos 0.05] [--turn-s 0.02]

Beside faults that are injected into 5 % of the episodes' tries (`--chaos`), every `--every` seconds one of
these befalls the run: the trainer is killed and started again with --resume, the policy's server is killed
or stopped for a while, a sandbox is killed, or what makes sandboxes hangs. Prints for each way of training
the effective time (updates times their median time, as a share of all time), faults by kind, what
`sandbox-rl check` says of the run's files, how the trainer's memory and descriptors grew, and what is left
when it has ended. Ends with 1 where a run died, the check finds fault, or anything is left.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import soak_run
from soak_run import Trainer, ended, left_over, prepare, sandboxes, servers, spawners, tree

CHAOS = 0.05
FAULTS = (*["sandbox killed"] * 3, "spawner stopped", "server killed", "server stopped", "trainer killed")
STOPPED_S = 8.0
DONE_IN_PART = 3
SETTLED_S = 20.0
"""Seconds after a start in which memory grows because things are loaded."""


def befall(trainer: Trainer, kind: str, rng: random.Random) -> bool:
    """Do one of `FAULTS`; False where there was nothing to do it to."""
    below = tree(trainer.pids[-1])
    if kind == "trainer killed":
        trainer.kill()
        trainer.wait(60)
        trainer.start()
        return True
    found = {"sandbox": sandboxes, "spawner": spawners, "server": servers}[kind.split()[0]](below)
    if not found:
        return False
    chosen = rng.choice(sorted(found))
    with suppress(ProcessLookupError):
        if kind.endswith("killed"):
            os.kill(chosen, signal.SIGKILL)
        else:
            os.kill(chosen, signal.SIGSTOP)
            if kind == "server stopped":
                time.sleep(STOPPED_S)
                os.kill(chosen, signal.SIGCONT)  # a spawner stays stopped, and is replaced
    return True


def measured(pid: int) -> tuple[float, int] | None:
    """(resident MiB, descriptors) of a process."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def slope(points: list[tuple[float, float]]) -> float:
    """Per hour, by Theil and Sen: the median of the slopes of all pairs, which outliers do not move."""
    pairs = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(points) for b in points[i + 1 :]]
    return 3600 * statistics.median(pairs) if pairs else float("nan")


def soak(directory: Path, mode: str, asked: argparse.Namespace) -> bool:
    """One run; prints what became of it and returns whether all is well."""
    seconds, every, rng = 60 * asked.minutes, asked.every, random.Random(asked.seed)
    blocks = {"chaos": {"share": asked.chaos, "seed": asked.seed}} if asked.chaos else {}
    recipe = prepare(directory, mode=mode, steps=100_000, turn_s=asked.turn_s, **blocks)
    trainer = Trainer(recipe, log=directory / "log.txt")
    done: Counter[str] = Counter()
    lives: dict[int, list[tuple[float, float, int]]] = {}
    began = time.monotonic()
    died = False
    with ended(trainer):
        trainer.start()
        born, due, before = time.monotonic(), time.monotonic() + every, 0
        while (now := time.monotonic()) - began < seconds:
            time.sleep(1.0)
            if trainer.code == DONE_IN_PART:  # it stopped by itself, and says that it can go on
                done["stopped by itself"] += 1
                trainer.start()
                born, before = time.monotonic(), trainer.updates()
            if trainer.code is not None:
                died = True
                break
            pid = trainer.pids[-1]
            if now - born > SETTLED_S and (found := measured(pid)):
                lives.setdefault(pid, []).append((now, *found))
            if now > due and trainer.updates() > before:  # what is only starting is started by somebody
                kind = rng.choice(FAULTS)
                done[kind] += befall(trainer, kind, rng)
                if kind == "trainer killed":
                    born, before = time.monotonic(), trainer.updates()
                due = time.monotonic() + every * rng.uniform(0.5, 1.5)
        all_time = time.monotonic() - began
        code = trainer.code
        if not died:
            trainer.kill(signal.SIGTERM)
            since = time.monotonic()
            code = trainer.wait(300)
            print(f"  SIGTERM: exit code {code} after {time.monotonic() - since:.0f} s")
    return told(trainer, done, lives, all_time, died or code not in (0, 3, 130, 143))


def told(
    trainer: Trainer,
    done: Counter[str],
    lives: dict[int, list[tuple[float, float, int]]],
    all_time: float,
    died: bool,
) -> bool:
    from sandbox_rl.ledger import read_ledger

    said = trainer.log.read_text(errors="replace")
    if died or trainer.run is None:
        print("  it died:\n" + said[-1500:])
        return False
    updates = {update.number: update for update in read_ledger(trainer.run / "ledger.jsonl")}
    times = [updates[n].time - updates[n - 1].time for n in updates if n - 1 in updates]
    usual = statistics.median(times) if times else float("nan")
    ends = Counter(s.end.value for u in updates.values() for g in u.groups for s in g.samples)
    injected = Counter(re.findall(r"injected fault: (\w+) \(", said))
    command = [sys.executable, "-m", "sandbox_rl.cli", "check", str(trainer.run)]
    check = subprocess.run(command, cwd=soak_run.REPOSITORY, capture_output=True, text=True, check=False)
    longest = max(lives.values(), key=len, default=[])
    memory, files = slope([(t, m) for t, m, _ in longest]), slope([(t, float(n)) for t, _, n in longest])
    left = {kind: things for kind, things in left_over(trainer).items() if things}
    print(
        f"  {len(updates)} updates in {all_time:.0f} s; effective time {len(updates) * usual / all_time:.0%}"
    )
    print(f"  from outside: {dict(done)}; injected: {dict(injected)}")
    print(f"  samples: {dict(ends)}")
    print(f"  check: exit code {check.returncode}: {(check.stdout + check.stderr).strip()[-300:]}")
    span = longest[-1][0] - longest[0][0] if longest else 0.0
    print(f"  slopes over {span:.0f} s: {memory:+.1f} MiB/h, {files:+.1f} descriptors/h")
    print(f"  left over: {left or 'nothing'}")
    return not (check.returncode or left)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, required=True, help="of each way of training")
    parser.add_argument("--mode", choices=["sync", "async", "both"], default="both")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between faults from outside")
    parser.add_argument("--chaos", type=float, default=CHAOS, help="share of tries with an injected fault")
    parser.add_argument("--turn-s", type=float, default=0.02, help="seconds that the server takes for a turn")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not arguments.minutes > 0:
        parser.error(f"--minutes {arguments.minutes:g}: expected more than 0")
    well = True
    for mode in ("sync", "async") if arguments.mode == "both" else (arguments.mode,):
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            print(f"{mode}: seed {arguments.seed}", flush=True)
            well &= soak(Path(folder), mode, arguments)
    raise SystemExit(int(not well))


if __name__ == "__main__":
    main()
