"""Shows on this machine that training works: sums and questions about documents, before and after.

    python scripts/gpu_demo.py [--model DIR] [--seeds 3] [--minutes 30] [--out gpu-demo]

A short supervised warm-up shows a model two ways of working, one of which pays; GRPO in real sandboxes finds
out which. Tasks are reasoning-gym's sums for the shell, and questions about who is where (made here), whose
document lies as a file in the sandbox. Prints held-out accuracy before and after for each seed, with 95 %
intervals, writes `demo.json` and the curves as `curve.png`. Works offline; `--model` is a directory, such as
SmolLM2-135M-Instruct's; without one the tiny model is made on the spot. On a GPU a vLLM server samples,
elsewhere the trainer's process (`--engine` chooses).

Started again after a cut, by whatever, it goes on from the last checkpoint. What does not end within
`--minutes` is saved, reported as far as it came, and the exit code is 1; it is 2 if what lies in `--out` was
trained on another device or from another model.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from curves import curve, draw
from gpu_common import REPOSITORY, device_name, earlier, save, start, stop

SAVE_S = 40.0
"""Before the end: time to finish an update and to save it."""
EVERY = 10
"""Updates between two points of the curve."""
ROWS = 3000
"""Tasks of each kind, training and held out."""
QUESTIONS = "questions.jsonl"
NAMES = tuple(
    first + last
    for first in ("Ad", "Be", "Ca", "Da", "El", "Fa", "Gi", "Ha", "Ju", "Li", "Ma", "No")
    for last in ("ra", "lin", "mo", "vi", "no")
)

# By scale: what the model needs to learn two ways of working, and to choose between them.
SCALES: dict[str, dict[str, Any]] = {
    "tiny": {
        "warmup": {
            "episodes": 2400,
            "sft": {
                "per_device_train_batch_size": 32,
                "max_steps": 400,
                "learning_rate": 3.0e-3,
                "warmup_steps": 20,
            },
        },
        "grpo": {"max_steps": 40, "per_device_train_batch_size": 64, "learning_rate": 2.0e-4},
        "episode": {"max_tokens": 500, "turn_tokens": 96},
    },
    "model": {
        "warmup": {
            "episodes": 600,
            "sft": {
                "per_device_train_batch_size": 16,
                "max_steps": 60,
                "learning_rate": 2.0e-5,
                "warmup_steps": 5,
            },
        },
        "grpo": {
            "max_steps": 40,
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 8,
            "learning_rate": 1.0e-5,
        },
        "episode": {"max_tokens": 1024, "turn_tokens": 160},
    },
}


def write_questions(path: Path) -> None:
    """Who is in which room; equal on every machine. The document is short and the answer nowhere else."""
    rng = random.Random(0)
    with path.open("w") as file:
        for _ in range(ROWS):
            count = rng.randint(4, 10)
            rooms, names = rng.sample(range(100, 1000), count), rng.sample(NAMES, count)
            facts = [f"{name} is in room {room}." for name, room in zip(names, rooms, strict=True)]
            row = {"question": f"Who is in room {rooms[0]}?", "answer": names[0]}
            rng.shuffle(facts)
            file.write(json.dumps(row | {"document": " ".join(facts)}) + "\n")


def recipe(seed: int, options: argparse.Namespace, out: Path, *, gpu: bool) -> dict[str, Any]:
    """One seed's run. Both sources have the short prompt, under the names that the results show."""
    scale = SCALES["model" if options.model else "tiny"]
    engine = options.engine or ("vllm" if gpu else "transformers")
    policy: dict[str, Any] = {"type": engine}
    if engine == "vllm" and gpu:
        policy["arguments"] = {"gpu-memory-utilization": 0.3, "dtype": "bfloat16"}
    elif engine == "vllm":
        policy["arguments"] = {"dtype": "float32", "kv-cache-memory-bytes": 1 << 29}
    return {
        "name": f"seed-{seed}",
        "seed": seed,
        "output_dir": str(out / "runs"),
        "model": {"path": options.model or "tiny", "dtype": "float32"},
        "policy": policy,
        "prompts": [str(out / "prompts")],
        "data": {
            "sources": [
                {
                    "type": "reasoning_gym",
                    "size": ROWS,
                    "dataset": "chain_sum",
                    "domain": "sums",
                    "params": {"min_terms": 2, "max_terms": 2, "min_digits": 3, "max_digits": 3},
                },
                {
                    "type": "table",
                    "path": str(out / QUESTIONS),
                    "domain": "documents",
                    "scorer": "exact",
                    "columns": {
                        "prompt": "question",
                        "answer": "answer",
                        "context": "document",
                        "group": "question",  # a room that is asked for in training is never held out
                    },
                },
            ],
            "held_out": 0.1,
        },
        "warmup": {
            "expert": "mixed",
            "episodes": scale["warmup"]["episodes"],
            "sft": {"lr_scheduler_type": "linear", **scale["warmup"]["sft"]},
        },
        "episode": {"max_turns": 4, "timeout_s": 60, "exec_timeout_s": 5, **scale["episode"]},
        "rollout": {"concurrency": 128 if gpu else 32},
        "evaluation": {"tasks": options.tasks, "every_steps": EVERY},
        "report_to": [],
        "grpo": {
            "num_generations": 8,
            "lr_scheduler_type": "constant",
            "activation_checkpointing": False,
            "save_steps": EVERY,
            **scale["grpo"],
            **({"max_steps": options.steps} if options.steps else {}),
        },
    }


def train(path: Path, run: Path, log: Path, deadline: float) -> int | None:
    """The exit code of one run, newly started or gone on with; None: cut by the clock, saved if possible."""
    command = [sys.executable, "-m", "sandbox_rl", "train", str(path)]
    command += ["--resume"] if run.is_dir() else []
    with log.open("ab") as output:
        child = start(command, output)
        try:
            for pause, how in ((max(1.0, deadline - SAVE_S - time.monotonic()), signal.SIGTERM), (SAVE_S, 0)):
                try:
                    code = child.wait(pause)
                    # One that was told to end says so by its exit code or by the signal, and has no export.
                    return code if (run / "export").is_dir() or how else None
                except subprocess.TimeoutExpired:
                    if how:
                        child.send_signal(how)  # it finishes the update and saves
            return None
        finally:
            stop(child)


def summary(run: Path) -> dict[str, Any]:
    """What a run has to show so far."""
    evaluations, _ = curve(run)
    if not evaluations:
        return {"updates": 0}
    points = [
        {
            "step": step,
            "accuracy": entry["eval/accuracy"],
            "interval": [entry["eval/low"], entry["eval/high"]],
            **{name: entry.get(f"eval/accuracy/{name}") for name in ("sums", "documents")},
        }
        for step, entry in (min(evaluations.items()), max(evaluations.items()))
    ]
    gain = points[1]["accuracy"] - points[0]["accuracy"]
    return {"updates": points[1]["step"], "before": points[0], "after": points[1], "gain": gain}


def said(point: dict[str, Any]) -> str:
    """Accuracy with its 95 % interval, as everything else says it."""
    low, high = point["interval"]
    return f"{100 * point['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def given() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="directory of a model; default: a tiny one made on the spot")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, help="of all seeds together; default: 10 for each")
    parser.add_argument("--out", type=Path, default=Path("gpu-demo"))
    parser.add_argument("--engine", choices=["vllm", "transformers"], help="default: vllm on a GPU")
    parser.add_argument("--tasks", type=int, default=200, help="held-out tasks per evaluation")
    parser.add_argument("--steps", type=int, help="updates; default: by the size of the model")
    return parser.parse_args()


def main() -> int:
    options = given()
    begun = time.monotonic()
    deadline = begun + 60 * (options.minutes or 10 * options.seeds)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    device = device_name()
    model = Path(options.model).name if options.model else "tiny"
    settings = {"device": device, "model": model}
    if (before := earlier(out / "demo.json", settings)) is None:
        return 2
    save(out / "demo.json", before | settings)  # a call that is cut has trained on this device, too
    shutil.copytree(REPOSITORY / "recipes" / "prompts", out / "prompts", dirs_exist_ok=True)
    for domain in ("sums", "documents"):
        shutil.copy(out / "prompts" / "arithmetic.yaml", out / "prompts" / f"{domain}.yaml")
    write_questions(out / QUESTIONS)
    report: dict[str, Any] = settings | {"seeds": {}}
    runs: dict[int, Path] = {}
    for seed in range(options.seeds):
        path, run = out / f"seed-{seed}.yaml", out / "runs" / f"seed-{seed}"
        path.write_text(yaml.safe_dump(recipe(seed, options, out, gpu=torch.cuda.is_available())))
        runs[seed] = run
        started, code = time.monotonic(), 0
        share = (deadline - started) / (options.seeds - seed)
        if not (run / "export").is_dir():
            code = train(path, run, out / f"seed-{seed}.log", started + share)
        found = summary(run) | {"seconds": round(time.monotonic() - started, 1)}
        found["state"] = {0: "done", None: "out of time"}.get(code, "failed")
        report["seeds"][seed] = found
        if found["state"] == "failed":
            found["log"] = (out / f"seed-{seed}.log").read_text().strip().splitlines()[-1:]
        line = f"seed {seed}: {found['state']}, {found['updates']} updates, {found['seconds']:.0f} s"
        if "gain" in found:
            line += f"; held out {said(found['before'])} -> {said(found['after'])}"
        print(line, *found.get("log", []), sep="; " if "log" in found else "", flush=True)
    report["seconds"] = round(time.monotonic() - begun, 1)
    gains = [found["gain"] for found in report["seeds"].values() if "gain" in found]
    if gains:
        report["gain"] = {"mean": sum(gains) / len(gains), "least": min(gains)}
        print(f"gain: {100 * report['gain']['mean']:.1f} points on average, {100 * min(gains):.1f} at least")
        drawn = out / "curve.png"
        try:
            draw(
                {f"seed {seed}": run for seed, run in runs.items()},
                drawn,
                f"{model}: sums and documents, {device}",
            )
            print(f"curve: {drawn}")
        except ImportError:
            print("no curve: matplotlib is not installed")
    save(out / "demo.json", report)
    print(f"{report['seconds']:.0f} s on {device}; {out / 'demo.json'}")
    return 0 if all(found["state"] == "done" for found in report["seeds"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
