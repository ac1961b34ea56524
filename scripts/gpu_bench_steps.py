"""Seconds per update of one way to train, read off a real run: a part of `gpu_bench.py`.

    python scripts/gpu_bench_steps.py WAY [--seed 0] [--scale tiny|full] [--model DIR] --out DIR [--json FILE]

    sync    rollouts and updates take turns, sampled by a vLLM server
    async   updates go on while episodes run
    local   as sync, sampled in the trainer's process: for machines where TRL has no vLLM
    trl     TRL's own loop over `environment_factory`: its colocated vLLM with a GPU, else its own sampling

All train the same model on the same tasks in the same kind of sandbox: equally many episodes per update, from
the same warm-up, which teaches commands of 0.05 to 0.6 s (`gpu_bench_expert.py`). The first update is not
counted. With a GPU its busy share while updates and rollouts run is asked of nvidia-smi ten times a second.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from gpu_common import REPOSITORY, device_name, scale_of, start, stop

WAYS = ("sync", "async", "local", "trl")
SCALES: dict[str, dict[str, int]] = {
    "full": {"updates": 20, "episodes": 64, "concurrency": 128, "held_out": 200, "warmup": 2400, "sft": 250},
    "tiny": {"updates": 4, "episodes": 16, "concurrency": 32, "held_out": 16, "warmup": 800, "sft": 200},
}
TOKENS_PER_EPISODE = 128
"""What an episode of the quickstart adds to an update, with its share of the common prompt, about."""

EXPERT = "scripts.gpu_bench_expert:waiting"
PHASES = ("perf/rollout_wait_s", "perf/fwd_bwd_s", "perf/optimizer_s", "perf/weight_sync_s", "step_time")


def recipe(way: str, seed: int, scale: dict[str, int], model: str | None, out: Path) -> dict[str, Any]:
    """Of the run; for `trl` what its loop is built from."""
    base = "quickstart-async" if way == "async" else "quickstart-vllm"
    made: dict[str, Any] = yaml.safe_load((REPOSITORY / "recipes" / f"{base}.yaml").read_text())
    gpu = torch.cuda.is_available()
    made |= {
        "name": f"{way}-{seed}",
        "seed": seed,
        "output_dir": str(out / "runs"),
        "prompts": [str(REPOSITORY / "recipes" / "prompts")],
        "report_to": [],
        "evaluation": {"tasks": 0 if way == "trl" else scale["held_out"]},
        "rollout": {"concurrency": scale["concurrency"]},
    }
    made["warmup"] |= {"expert": EXPERT, "episodes": scale["warmup"]}
    made["warmup"]["sft"] |= {"max_steps": scale["sft"]}
    updates = scale["updates"]
    # Everything is one micro-batch in each of the ways, so that an update is the same work.
    made["grpo"] |= {
        "max_steps": updates,
        "save_steps": 10 * updates,
        "per_device_train_batch_size": scale["episodes"],
    }
    if way == "async":
        # Updates are composed of whole groups, by tokens: about those of as many episodes.
        made["grpo"] |= {"token_budget": TOKENS_PER_EPISODE * scale["episodes"]}
    if way in ("local", "trl"):
        made["policy"] = {"type": "transformers"}
    elif gpu:
        made["policy"] = {"type": "vllm", "arguments": {"gpu-memory-utilization": 0.4}}
    if gpu:
        made["model"]["dtype"] = "bfloat16"
    if model is not None:
        made["model"]["path"] = model
        del made["warmup"]
    return made


@contextmanager
def watched_gpu() -> Iterator[list[tuple[float, float]]]:
    """(seconds since the epoch, share of time in which a kernel ran), filled in when it is left."""
    samples: list[tuple[float, float]] = []
    if not torch.cuda.is_available():
        yield samples
        return
    query = ["nvidia-smi", "--query-gpu=timestamp,utilization.gpu", "--format=csv,noheader,nounits"]
    with tempfile.TemporaryFile("w+") as output:  # a pipe that nobody reads would stop it
        watcher = subprocess.Popen([*query, "-lms", "100"], stdout=output, text=True)
        try:
            yield samples
        finally:
            watcher.terminate()
            watcher.wait(10)
            output.seek(0)
            for line in output:
                when, _, busy = line.partition(",")
                stamp = datetime.strptime(when.strip(), "%Y/%m/%d %H:%M:%S.%f").timestamp()
                samples.append((stamp, float(busy) / 100))


def summary(lines: list[dict[str, Any]], busy: list[tuple[float, float]], episodes: int) -> dict[str, Any]:
    """What the log lines of a run say about its updates."""
    steps = [line for line in lines if "grad_norm" in line]
    if len(steps) < 3:
        raise SystemExit(f"{len(steps)} updates were logged, expected at least 3")
    first, last = steps[0]["time"], steps[-1]["time"]
    found: dict[str, Any] = {
        "updates": len(steps),
        "episodes_per_update": episodes,
        "seconds_per_update": (last - first) / (len(steps) - 1),
        "reward": statistics.fmean(_reward(line) for line in steps[len(steps) // 2 :]),
        "held_out": [line["eval/accuracy"] for line in lines if "eval/accuracy" in line],
        "timeline": [
            {"update": line["step"], "ends": line["time"] - first}
            | {name: line[name] for name in PHASES if line.get(name) is not None}
            for line in steps
        ],
    }
    if within := [share for when, share in busy if first <= when <= last]:
        found["gpu_busy"] = statistics.fmean(within)
    return found


def _reward(line: dict[str, Any]) -> float:
    return float(line["reward/mean"] if line.get("reward/mean") is not None else line["reward"])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", choices=tuple(SCALES))
    parser.add_argument(
        "--model", help="directory of a warmed-up model; default: the tiny one, warmed up here"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    scale = SCALES[scale_of(options.scale)]
    out = options.out.resolve()
    name = f"{options.way}-{options.seed}"
    path, run = out / f"{name}.yaml", out / "runs" / name
    shutil.rmtree(run, ignore_errors=True)  # of a measurement that was cut off: its clock is of no use
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe(options.way, options.seed, scale, options.model, out)))
    module = ["-m", "sandbox_rl", "train"]
    if options.way == "trl":
        module = [str(REPOSITORY / "scripts" / "gpu_bench_trl.py")]
    with (out / f"{name}.log").open("wb") as log, watched_gpu() as busy:
        process = start([sys.executable, *module, str(path)], log)
        try:
            code = process.wait()
        finally:
            stop(process)
    if code:
        last = (out / f"{name}.log").read_text(errors="replace").strip().splitlines()[-1:]
        print(f"{name} failed: {''.join(last)}")
        return 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = summary(lines, busy, scale["episodes"])
    shown = f"GPU busy {found['gpu_busy']:.2f}" if "gpu_busy" in found else ""
    print(f"{device_name()}: {name} {found['seconds_per_update']:.2f} s per update {shown}")
    if options.json is not None:
        options.json.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
