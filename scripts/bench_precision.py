"""Whether bfloat16 with float32 masters learns as float32 does: the quickstart's loss and reward, run by run.

The tiny policy is warmed up once, in real sandboxes; then each run does as many GRPO updates from there.
Float32 with several seeds says how far runs differ by chance. The mean of bfloat16's last updates has to be
no further from float32's mean than float32's own largest and smallest are apart.

    python scripts/bench_precision.py [--updates 30] [--episodes 16] [--float32-seeds 3] [--bfloat16-seeds 1]

Exit code 1: bfloat16 lies outside.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from sandbox_rl.config.load import load_recipe
from sandbox_rl.display import Silent
from sandbox_rl.runs.train import train
from sandbox_rl.runs.warmup import warmup

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
LAST = 10
"""Updates at the end of a run that are averaged."""


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


def within(wide: Sequence[float], low: Sequence[float]) -> bool:
    """Whether the mean of `low` is as near to that of `wide` as the latter's extremes are to each other."""
    return abs(fmean(low) - fmean(wide)) <= max(wide) - min(wide)


def main() -> int:
    """Exit code 1 if bfloat16 lies outside float32's spread."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--episodes", type=int, default=16, help="per update, a multiple of 8")
    parser.add_argument("--float32-seeds", type=int, default=3)
    parser.add_argument("--bfloat16-seeds", type=int, default=1)
    parser.add_argument("--warmup-episodes", type=int, default=2400)
    parser.add_argument("--warmup-steps", type=int, default=250)
    parser.add_argument("--model", type=Path, help="a policy that is warmed up already")
    options = parser.parse_args()
    if options.float32_seeds < 2:
        parser.error("--float32-seeds: one run has no spread, expected at least 2")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = options.model or warmed_up(directory, options.warmup_episodes, options.warmup_steps)
        found: dict[str, list[dict[str, float]]] = {"float32": [], "bfloat16": []}
        print(f"{'':10} seed  loss      solved   (means of the last {LAST} of {options.updates} updates)")
        for dtype, seeds in (("float32", options.float32_seeds), ("bfloat16", options.bfloat16_seeds)):
            for seed in range(seeds):
                figures = run(model, directory, dtype, seed, options.updates, options.episodes)
                found[dtype].append(figures)
                print(
                    f"{dtype:10} {seed:4}  {figures['loss']:+.5f}  {figures['solved']:.3f}"
                    f"    at first {figures['solved at first']:.3f}",
                    flush=True,
                )
    failed = False
    for name in ("loss", "solved"):
        wide, low = ([figures[name] for figures in found[dtype]] for dtype in ("float32", "bfloat16"))
        good = within(wide, low)
        failed |= not good
        print(
            f"{name}: float32 {fmean(wide):+.5f} ± {max(wide) - min(wide):.5f}, bfloat16 {fmean(low):+.5f}: "
            f"{'within' if good else 'OUTSIDE'}"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
