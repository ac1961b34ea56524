"""Draws runs into one picture: reward in training, and accuracy on held-out tasks with its interval.

    python scripts/curves.py RUN... [-o curve.svg] [--title TITLE]

RUN is what `sandbox-rl train` has written, also of a run that goes on. Needs matplotlib (the extra `plots`).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["curve", "draw"]


def curve(run: Path) -> tuple[dict[int, dict[str, Any]], dict[int, float]]:
    """Held-out evaluations and training rewards by step; of steps done twice after a cut, the later."""
    evaluations: dict[int, dict[str, Any]] = {}
    rewards: dict[int, float] = {}
    if (run / "metrics.jsonl").exists():
        for line in (run / "metrics.jsonl").read_text().splitlines():
            entry = json.loads(line)
            if "eval/accuracy" in entry:
                evaluations[entry["step"]] = entry
            elif "reward" in entry:
                # TRL's own is of what the estimator is given, which the paper's scales.
                rewards[entry["step"]] = entry.get("reward/mean", entry["reward"])
    return evaluations, rewards


def draw(runs: dict[str, Path], target: Path, title: str = "") -> None:
    """One colour for each run; `target` says by its ending what kind of picture it is.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "sandbox_rl"  # the same curves are the same file
    figure, axes = pyplot.subplots(figsize=(7, 4.2), constrained_layout=True)
    for number, (label, run) in enumerate(runs.items()):
        evaluations, rewards = curve(run)
        colour = f"C{number}"
        axes.plot(sorted(rewards), [rewards[s] for s in sorted(rewards)], color=colour, alpha=0.3, lw=1)
        steps = sorted(evaluations)
        low, middle, high = (
            [evaluations[step][f"eval/{name}"] for step in steps] for name in ("low", "accuracy", "high")
        )
        below = [m - end for m, end in zip(middle, low, strict=True)]
        above = [end - m for m, end in zip(middle, high, strict=True)]
        how = {"color": colour, "marker": "o", "capsize": 3, "label": label}
        axes.errorbar(steps, middle, yerr=[below, above], **how)
    axes.set(xlabel="updates", ylabel="accuracy", ylim=(0, 1.02), title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(title="held out, 95 % interval\n(thin: reward in training)", loc="lower right")
    figure.savefig(target, dpi=130, metadata={"Date": None} if target.suffix == ".svg" else None)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("-o", "--out", type=Path, default=Path("curve.svg"))
    parser.add_argument("--title", default="")
    arguments = parser.parse_args()
    for run in arguments.runs:
        if not any(curve(run)):
            parser.error(f"{run} has no updates in a metrics.jsonl, expected what `sandbox-rl train` writes")
    try:
        draw({str(run): run for run in arguments.runs}, arguments.out, arguments.title)
    except ImportError:
        parser.error("matplotlib is not installed; pip install 'sandbox-rl[plots]'")
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
