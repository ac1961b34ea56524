"""Rows per second and memory of loading and building, on generated rows.

    python scripts/bench_data.py [--rows 1000000]

Each step runs in a process of its own, so its peak memory is its own. Time is processor time of that
process: rows per second per core. Bounds: 20,000 rows/s and 500 MB. Exit code 1 where one is missed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIN_ROWS_PER_SECOND = 20_000
MAX_MB = 500


def write_rows(folder: Path, rows: int) -> None:
    with (folder / "rows.jsonl").open("w") as file:
        for n in range(rows):
            row = {"prompt": f"What is the name of thing {n}?", "answer": f"name{n % 977}"}
            file.write(json.dumps(row | {"context": f"Thing {n // 4} has a name and a place."}) + "\n")


def load(folder: Path, rows: int) -> int:
    from sandbox_rl.tasks.config import DataSettings
    from sandbox_rl.tasks.load import load_tasks

    settings = DataSettings.model_validate({"sources": [{"type": "table", "path": "rows.jsonl"}]})
    tasks = load_tasks(settings, split="train", base_dir=folder)
    assert tasks[len(tasks) // 2].prompt
    return tasks.report.rows


def build(folder: Path, rows: int) -> int:
    from sandbox_rl.build_data.builder import build_data
    from sandbox_rl.build_data.config import BuildSettings

    source = {"type": "table", "path": "rows.jsonl", "columns": {"context": "context"}}
    settings = BuildSettings.model_validate({"source": source, "output_dir": "built"})
    return build_data(settings, base_dir=folder).rows


def measured(step: Callable[[Path, int], int], folder: Path, rows: int, results: Any) -> None:
    start = time.process_time()
    done = step(folder, rows)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results.put((done, done / seconds, peak))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the largest set")
    rows = parser.parse_args().rows
    context = multiprocessing.get_context("spawn")
    good = True
    print(f"{'step':8} {'rows':>9} {'rows/s/core':>12} {'peak MB':>8}")
    for count in (rows // 1000, rows):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_rows(folder, count)
            for step in (load, build):
                results = context.SimpleQueue()
                process = context.Process(target=measured, args=(step, folder, count, results))
                process.start()
                process.join(1800)
                if process.exitcode != 0:
                    print(f"{step.__name__} ended with exit code {process.exitcode}", file=sys.stderr)
                    return 1
                done, rate, peak = results.get()
                print(f"{step.__name__:8} {done:9d} {rate:12.0f} {peak:8.0f}", flush=True)
                if count == rows:  # a thousand rows measure the imports
                    good &= rate >= MIN_ROWS_PER_SECOND and peak < MAX_MB
    print(f"bounds: >= {MIN_ROWS_PER_SECOND} rows/s/core, < {MAX_MB} MB: {'held' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
