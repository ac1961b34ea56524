"""Runs a command and says how long it took and how much memory it and all its processes had at most.

    python scripts/measure.py [--json FILE] -- sandbox-rl train recipes/smollm2-cpu.yaml

Memory is the sum of the processes' proportional set sizes (PSS: what several share is counted once), looked
at once a second, so that a shorter peak can be missed. Processes count that are below the command or in its
session. Ends with the command's own exit code.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

MIB = 2**20


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also written there, again after each new peak")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, command = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    if not command:
        parser.error("the command goes after --")
    started = time.monotonic()
    try:
        process = subprocess.Popen(command, start_new_session=True)
    except OSError as error:
        parser.error(f"{command[0]}: {error.strerror}")
    for number in (signal.SIGINT, signal.SIGTERM):  # the terminal's do not reach another session
        signal.signal(number, lambda number, _: process.send_signal(number))
    peak = 0
    while True:
        try:
            status = process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            status = None
        now = memory(process.pid) if status is None else 0
        if now > peak or status is not None:
            peak = max(peak, now)
            figures = {
                "seconds": round(time.monotonic() - started),
                "peak_mib": peak // MIB,
                "exit_code": status,
            }
            if arguments.json:
                arguments.json.write_text(json.dumps(figures) + "\n")
        if status is not None:
            print(f"{figures['seconds']} s, at most {figures['peak_mib']:,} MiB", file=sys.stderr)
            return status if status >= 0 else 128 - status


def memory(leader: int) -> int:
    """Bytes of the processes below ``leader`` and of those in its session, each once."""
    found = {leader}
    parents = {}
    for process in psutil.process_iter():
        try:
            parents[process.pid] = process.ppid()
            if os.getsid(process.pid) == leader:
                found.add(process.pid)
        except (psutil.Error, OSError):  # it has just ended
            continue
    below = set(found)
    while below:
        below = {pid for pid, parent in parents.items() if parent in below} - found
        found |= below
    return sum(map(proportional, found))


def proportional(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except (psutil.Error, OSError):
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
