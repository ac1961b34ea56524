"""One command that shows whether everything with a vLLM server works on this machine, a GPU or not.

    python scripts/gpu_check.py [--model DIR] [--minutes 9] [--out FOLDER]

Trains the tiny policy (or `--model`, without a warm-up) for a few updates, synchronously and asynchronously,
each in a process of its own with its own server, and reads what they logged: whether sampler and trainer
agree, how long episodes paused for weights, and how a step's time was spent. Prints a table, writes
`gpu_check.json`; a part that was done before is not done again. Exit code 1 if a part failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
MISMATCH = {"cpu": 1e-4, "cuda": 0.05}
"""Mean difference of log-probs per token: float32 on CPUs, bfloat16 on GPUs (nats)."""


def recipe(mode: str, model: str | None, out: Path) -> dict[str, Any]:
    gpu = torch.cuda.is_available()
    quick = yaml.safe_load(
        (REPOSITORY / "recipes" / f"quickstart-{'vllm' if mode == 'sync' else 'async'}.yaml").read_text()
    )
    quick |= {
        "name": mode,
        "output_dir": str(out / "runs"),
        "prompts": [str(REPOSITORY / "recipes" / "prompts")],
    }
    quick["warmup"] |= {"episodes": 300}
    quick["warmup"]["sft"] |= {"max_steps": 100, "per_device_train_batch_size": 16}
    quick["evaluation"] = {"tasks": 0}
    quick["grpo"] |= {"max_steps": 6, "save_steps": 6}
    if mode == "sync":
        quick["grpo"] |= {"per_device_train_batch_size": 32}
    if gpu:
        quick["model"]["dtype"] = "bfloat16"
        quick["policy"] = {"type": "vllm", "arguments": {"gpu-memory-utilization": 0.3}}
        quick["rollout"]["concurrency"] = 128
    if model is not None:
        quick["model"]["path"] = model
        del quick["warmup"]
    return quick


def run_part(mode: str, model: str | None, out: Path, deadline: float) -> dict[str, Any]:
    path = out / f"{mode}.yaml"
    path.write_text(yaml.safe_dump(recipe(mode, model, out)))
    started = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "sandbox_rl.train", str(path)],
            capture_output=True,
            text=True,
            timeout=max(1.0, deadline - time.monotonic()),
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": "out of time"}
    if done.returncode:
        return {"failed": (done.stderr or done.stdout).strip().splitlines()[-1:]}
    (run,) = sorted((out / "runs").glob(f"{mode}*/metrics.jsonl"))[-1:]
    steps = [json.loads(line) for line in run.read_text().splitlines()]
    steps = [step for step in steps if "grad_norm" in step]

    def median(key: str) -> float | None:
        values = [step[key] for step in steps if step.get(key) is not None]
        return statistics.median(values) if values else None

    keys = {
        "sync": ("mismatch/mean", "mismatch/kl", "sampling/importance_sampling_ratio/mean", "step_time"),
        "async": (
            "kl",
            "ratio",
            "perf/weight_sync_s",
            "perf/step_s",
            "perf/rollout_wait_s",
            "perf/fwd_bwd_s",
            "sample/staleness_mean",
        ),
    }[mode]
    return {"seconds": time.monotonic() - started, "updates": len(steps)} | {key: median(key) for key in keys}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="directory of a model with a chat template; default: a tiny one")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, default=Path("gpu-check"))
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    report = options.out / "gpu_check.json"
    found: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    cuda = torch.cuda.is_available()
    found["device"] = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    for mode in ("sync", "async"):
        if "updates" not in found.get(mode, {}):
            found[mode] = run_part(mode, options.model, options.out.resolve(), deadline)
            report.write_text(json.dumps(found, indent=2))
    bound = MISMATCH["cuda" if cuda else "cpu"]
    gap = found["sync"].get("mismatch/mean")
    found["ok"] = all("failed" not in found[m] for m in ("sync", "async")) and gap is not None and gap < bound
    report.write_text(json.dumps(found, indent=2))
    print(f"device: {found['device']}")
    for mode in ("sync", "async"):
        for key, value in found[mode].items():
            print(
                f"{mode:6} {key:45} {value:.6g}" if isinstance(value, float) else f"{mode:6} {key:45} {value}"
            )
    print("ok" if found["ok"] else f"FAILED (mismatch bound {bound})")
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
