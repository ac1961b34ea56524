"""Precision and recall of the `math` scorer on a table of pairs, beside math-verify alone.

    python scripts/bench_maths.py [TABLE.jsonl …] [--wrong] [--no-math-verify]

A row has `gold`, `answer`, `equal` and, where known, `kind`. Without a table: those of the tests. Precision
is the share of paid answers that are right, recall the share of right answers that are paid. Exit code 1
unless ours pays no wrong answer and at least 97 % of the right ones.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from sandbox_rl.rewards.maths import equal

DATA = Path(__file__).parents[1] / "tests" / "unit" / "rewards" / "data"
TABLES = ("maths_pairs.jsonl", "maths_table.jsonl", "maths_held_out.jsonl")
MIN_RECALL = 0.97


def math_verify_equal(answer: str, gold: str) -> bool:
    """As its README says: both inside of LaTeX's signs, the answer also as plain text."""
    from math_verify import parse, verify

    parsed = parse(f"${answer}$", parsing_timeout=2)
    return bool(verify(parse(f"${gold}$", parsing_timeout=2), parsed, timeout_seconds=2))


def judge(
    rows: list[dict[str, object]], scorer: Callable[[str, str], bool]
) -> tuple[Counter[str], list[object], list[float]]:
    counts: Counter[str] = Counter()
    wrong: list[object] = []
    seconds = []
    for row in rows:
        start = time.perf_counter()
        paid = scorer(str(row["answer"]), str(row["gold"]))
        seconds.append(time.perf_counter() - start)
        counts[f"{'right' if row['equal'] else 'wrong'} {'paid' if paid else 'refused'}"] += 1
        if paid is not row["equal"]:
            wrong.append({**row, "paid": paid})
    return counts, wrong, sorted(seconds)


def report(name: str, counts: Counter[str], seconds: list[float]) -> tuple[int, float]:
    paid, right = counts["right paid"] + counts["wrong paid"], counts["right paid"] + counts["right refused"]
    recall = counts["right paid"] / max(1, right)
    print(
        f"  {name:12} precision {counts['right paid'] / max(1, paid):7.2%}  recall {recall:7.2%}  "
        f"wrong paid {counts['wrong paid']:3}  right refused {counts['right refused']:3}  "
        f"p50 {1000 * seconds[len(seconds) // 2]:.2f} ms  "
        f"p99 {1000 * seconds[int(0.99 * len(seconds))]:.1f} ms"
    )
    return counts["wrong paid"], recall


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tables", nargs="*", type=Path, default=[DATA / name for name in TABLES])
    parser.add_argument("--wrong", action="store_true", help="print the rows that ours judges wrong")
    parser.add_argument("--no-math-verify", action="store_true")
    options = parser.parse_args()
    if not options.no_math_verify and importlib.util.find_spec("math_verify") is None:
        parser.error("math-verify is not installed: pip install 'sandbox-rl[dev]', or give --no-math-verify")
    equal("5 km", "6 m"), equal("\\sqrt{2}", "\\pi")  # what the first answers of a process import
    good = True
    for table in options.tables:
        rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
        right = sum(bool(row["equal"]) for row in rows)
        print(f"{table.name}: {len(rows)} pairs, {right} right, {len(rows) - right} must be 0")
        counts, wrong, seconds = judge(rows, equal)
        paid, recall = report("ours", counts, seconds)
        good = good and not paid and recall >= MIN_RECALL
        for row in wrong if options.wrong else ():
            print("   ", json.dumps(row, ensure_ascii=False))
        if not options.no_math_verify:
            counts, _, seconds = judge(rows, math_verify_equal)
            report("math-verify", counts, seconds)
    print("bounds held" if good else "bounds MISSED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
