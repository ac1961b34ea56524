"""Whether bfloat16 with float32 masters learns as float32 does: the quickstart's loss and reward, run by run.

The tiny policy is warmed up once, in real sandboxes; then each run does as many GRPO updates from there, with
several seeds in each precision. Of the last updates' loss and solve rate the means over seeds are compared:

- differs: of all ways to deal the runs out to two precisions at most 5 % set the means as far apart (an exact
  permutation test, two-sided; it needs four seeds of each);
- alike: the difference and twice its standard error lie within three standard deviations of float32's seeds:
  another precision is no further away than another seed may be;
- undecided: neither; more seeds tell.

    python scripts/bench_precision.py [--updates 30] [--episodes 16] [--seeds 4]

Exit code 1: it differs in one of them; 2: undecided.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean, variance

from sandbox_rl.config.load import load_recipe
from sandbox_rl.display import Silent
from sandbox_rl.runs.train import train
from sandbox_rl.runs.warmup import warmup

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
LAST = 10
"""Updates at the end of a run that are averaged."""
MARGIN = 3.0
"""Standard deviations of float32's seeds within which a precision is as near as another seed."""


def warmed_up(directory: Path, episodes: int, steps: int) -> Path:
    """The quickstart's policy before reinforcement learning."""
    recipe = load_recipe(
        RECIPE, [f"output_dir={directory}", f"warmup.episodes={episodes}", f"warmup.sft.max_steps={steps}"]
    )
    return warmup(recipe, base_dir=RECIPE.parent, display=Silent()).path


def run(model: Path, directory: Path, dtype: str, seed: int, updates: int, episodes: int) -> dict[str, float]:
    """Mean loss and outcome of the last updates of one run."""
    recipe = load_recipe(
        RECIPE,
        [
            f"name={dtype}-{seed}",
            f"output_dir={directory}",
            f"model.path={model}",
            f"model.dtype={dtype}",
            "warmup=null",
            f"seed={seed}",
            "evaluation.tasks=0",
            f"grpo.max_steps={updates}",
            f"grpo.per_device_train_batch_size={episodes}",
            f"grpo.save_steps={updates}",
        ],
    )
    result = train(recipe, base_dir=RECIPE.parent)
    lines = [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line and "solve_rate" in line]
    if len(steps) != updates:
        raise SystemExit(f"{dtype}, seed {seed}: {len(steps)} updates were logged, expected {updates}")
    return {
        "loss": fmean(line["loss"] for line in steps[-LAST:]),
        "solved": fmean(line["solve_rate"] for line in steps[-LAST:]),
        "solved at first": fmean(line["solve_rate"] for line in steps[:LAST]),
    }


def compared(wide: Sequence[float], low: Sequence[float]) -> tuple[str, float, float]:
    """`differs`, `alike` or `undecided`; low - wide of the means; twice its standard error.

    Args:
        wide, low: a figure of each seed, at least two of each.
    """
    difference = fmean(low) - fmean(wide)
    error = 2 * math.sqrt(variance(wide) / len(wide) + variance(low) / len(low))
    runs = [*wide, *low]
    apart = [
        abs(fmean(runs[i] for i in chosen) - fmean(runs[i] for i in range(len(runs)) if i not in chosen))
        for chosen in combinations(range(len(runs)), len(low))
    ]
    as_far = sum(distance >= abs(difference) - 1e-12 for distance in apart) / len(apart)
    if as_far <= 0.05:
        return "differs", difference, error
    alike = abs(difference) + error <= MARGIN * math.sqrt(variance(wide))
    return ("alike" if alike else "undecided"), difference, error


def main() -> int:
    """See the exit codes above."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--episodes", type=int, default=16, help="per update, a multiple of 8")
    parser.add_argument("--seeds", type=int, default=4, help="runs in each precision")
    parser.add_argument("--warmup-episodes", type=int, default=2400)
    parser.add_argument("--warmup-steps", type=int, default=250)
    parser.add_argument("--model", type=Path, help="a policy that is warmed up already")
    options = parser.parse_args()
    if options.seeds < 4:
        parser.error(f"--seeds: {options.seeds}, expected at least 4; fewer tell nothing from chance")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = options.model or warmed_up(directory, options.warmup_episodes, options.warmup_steps)
        found: dict[str, list[dict[str, float]]] = {"float32": [], "bfloat16": []}
        print(f"{'':10} seed  loss      solved   (means of the last {LAST} of {options.updates} updates)")
        for dtype in found:
            for seed in range(options.seeds):
                figures = run(model, directory, dtype, seed, options.updates, options.episodes)
                found[dtype].append(figures)
                print(
                    f"{dtype:10} {seed:4}  {figures['loss']:+.5f}  {figures['solved']:.3f}"
                    f"    at first {figures['solved at first']:.3f}",
                    flush=True,
                )
    verdicts = []
    for name in ("loss", "solved"):
        wide, low = ([figures[name] for figures in found[dtype]] for dtype in ("float32", "bfloat16"))
        verdict, difference, error = compared(wide, low)
        verdicts.append(verdict)
        print(
            f"{name}: float32 {fmean(wide):+.5f} (a seed's deviation {math.sqrt(variance(wide)):.5f}), "
            f"bfloat16 {difference:+.5f} ± {error:.5f} from it: {verdict}"
        )
    return 1 if "differs" in verdicts else 2 * ("undecided" in verdicts)


if __name__ == "__main__":
    sys.exit(main())
