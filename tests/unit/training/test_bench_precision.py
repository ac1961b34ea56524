"""The rule by which `scripts/bench_precision.py` decides."""

from __future__ import annotations

import importlib.util
import random
from collections import Counter
from pathlib import Path

PATH = Path(__file__).parents[3] / "scripts" / "bench_precision.py"
spec = importlib.util.spec_from_file_location("bench_precision", PATH)
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)


def verdicts(shift, trials=200):
    """Of four seeds each, whose figures spread by 0.05, the second ones moved."""
    draw = random.Random(0)
    return Counter(
        bench.compared(
            [draw.gauss(0.7, 0.05) for _ in range(4)], [draw.gauss(0.7 + shift, 0.05) for _ in range(4)]
        )[0]
        for _ in range(trials)
    )


def test_equal_precisions_are_seldom_told_apart_and_mostly_alike():
    found = verdicts(0.0)
    assert found["differs"] <= 0.08 * found.total()
    assert found["alike"] >= 0.6 * found.total()


def test_a_precision_that_does_not_learn_differs():
    assert verdicts(-0.3)["differs"] >= 190
    assert bench.compared([0.7, 0.71, 0.69, 0.72], [0.2, 0.21, 0.19, 0.2])[0] == "differs"


def test_two_seeds_far_apart_say_nothing():
    assert bench.compared([0.5, 0.9], [0.1, 0.9])[0] == "undecided"
