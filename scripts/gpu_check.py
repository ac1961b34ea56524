"""One command that shows whether everything with a vLLM server works on this machine, a GPU or not.

    python scripts/gpu_check.py [--model DIR] [--minutes 9] [--out gpu-check] [--parts NAME ...]

Trains the tiny policy (or `--model`, without a warm-up) for a few updates, each part in a process of its own
with its own server, and reads what was logged:

    sync         rollouts and updates take turns; held-out evaluation before and after
    masters      as sync, computed in bfloat16 at the paper's rate of 1e-6, at which bfloat16 weights stay
    async        updates go on while episodes run; how long they paused, and where the time went
    restart      the server is killed during training, and training ends as if it had not been
    shm, gloo …  each way for weights to reach the server that this machine has, besides the default one
    early-stop   no step waits for its slowest groups
    lora         adapters in place of all weights
    sleep        the server gives its memory back during updates (with a GPU)
    eval         `sandbox-rl eval` with what the first part exported

A part passes if its process ends well and, in training, an update before the last one moved the weights and
the trainer's log-probs of the sampled tokens still agree with the server's. Without that movement a transfer
that does nothing would pass, so rewards follow a coin's rule (`tests.vllm.rewards:even`), not right answers:
they say nothing about learning. In `masters` the share of weights that an update changed is judged as well.
In `async` samples are older than the trainer by design; there the age is held against `grpo.max_staleness`,
and agreement is shown but not judged. `restart` kills during rollouts: in the middle of a transfer a run ends
with an error instead, on purpose.

Prints a table, writes `gpu_check.json`; a part that passed before, on this device and with this model, is
not done again. Exit code 1 if a part failed or time ran out, 2 if what lies in `--out` is another's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from gpu_common import REPOSITORY, device_name, earlier, save, start, stop

MISMATCH = {"cpu": 1e-4, "cuda": 0.05}
"""Mean difference of log-probs per token: float32 on CPUs, bfloat16 on GPUs (nats)."""
MOVED = 0.9
"""Share of what an update should change that it has to change, in `masters`."""
INTO_ROLLOUT_S = 2.0
"""From the log line of an update until the next rollouts are under way, the transfer done."""
SERVER = "vllm.entrypoints"
"""In the command line of a server's process."""

SYNC_KEYS = ("mismatch/mean", "mismatch/max", "mismatch/kl", "step_time", "update/changed")
ASYNC_KEYS = (
    "kl",
    "ratio",
    "perf/weight_sync_s",
    "perf/step_s",
    "perf/rollout_wait_s",
    "perf/fwd_bwd_s",
    "off_policy/age_mean",
    "off_policy/divided_turns",
)


def parts_of(gpus: int) -> list[str]:
    """In the order of what is learned from them, for a clock that may run out."""
    if not gpus:
        return ["sync", "masters", "async", "restart", "gloo", "lora", "early-stop", "eval"]
    nccl = ["nccl"] if gpus > 1 else []
    more = ["async", "restart", "shm", "gloo", *nccl, "lora", "sleep", "early-stop", "eval"]
    return ["sync", "masters", *more]


def recipe(part: str, model: str | None, out: Path, *, gpu: bool) -> dict[str, Any]:
    base = "quickstart-async" if part == "async" else "quickstart-vllm"
    quick: dict[str, Any] = yaml.safe_load((REPOSITORY / "recipes" / f"{base}.yaml").read_text())
    quick |= {
        "name": part,
        "output_dir": str(out / "runs"),
        "prompts": [str(REPOSITORY / "recipes" / "prompts")],
        "report_to": [],
        "evaluation": {"tasks": 16 if part == "sync" else 0},
    }
    quick["warmup"] |= {"episodes": 300}
    quick["warmup"]["sft"] |= {"max_steps": 100, "per_device_train_batch_size": 16}
    steps = {"async": 6, "sync": 4, "restart": 4, "early-stop": 5, "masters": 3}.get(part, 2)
    quick["grpo"] |= {"max_steps": steps, "save_steps": steps}
    if part != "async":
        quick["grpo"] |= {"per_device_train_batch_size": 32}
    if gpu:
        quick["model"]["dtype"] = "bfloat16"
        # Graphs take a minute at each start: two parts show that weights get in beside them.
        eager = {} if part in ("sync", "async") else {"enforce-eager": True}
        # A cache of a fixed size: where others use the card, vLLM's measurement of what is free may fail.
        memory = {"gpu-memory-utilization": 0.3, "kv-cache-memory-bytes": 4 << 30}
        quick["policy"] = {"type": "vllm", "arguments": memory | eager}
        quick["rollout"]["concurrency"] = 128
    if part in ("shm", "gloo", "nccl"):
        quick["policy"]["transfer"] = part
    if part == "nccl":
        quick["policy"]["placement"] = "split"
    if part == "masters":
        quick["model"]["dtype"] = "bfloat16"
        quick["grpo"]["learning_rate"] = 1.0e-6
    if part == "sleep":
        quick["policy"]["sleep"] = True
    quick["reward"] = {"scorer": "tests.vllm.rewards:even"}
    for source in quick["data"]["sources"]:  # that scorer knows no gold, and constants please it
        source |= {"gold_is_answer": False, "accept_degenerate": True}
    if part == "lora":
        quick["model"]["lora"] = {"r": 8, "alpha": 16}
    if part == "early-stop":
        quick["rollout"]["over_sample"] = 0.25
    if model is not None:
        quick["model"]["path"] = model
        del quick["warmup"]
    return quick


def kill_server(pid: int) -> bool:
    """SIGKILL to the server below a process; False if there is none."""
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            words = child.cmdline()[:4]
            # The supervisor carries the same words as arguments of its own.
            if SERVER in " ".join(words) and "-I" not in words:
                child.kill()
                return True
    return False


def run_process(command: list[str], log: Path, deadline: float, *, kill_after: Path | None = None) -> str:
    """ "" if it ended well, else why not.

    Args:
        kill_after: once this file has a line, the server is killed.
    """
    waits_to_kill = kill_after is not None
    with log.open("wb") as output:
        process = start(command, output)
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    return "out of time"
                if waits_to_kill and kill_after is not None and kill_after.exists():
                    time.sleep(INTO_ROLLOUT_S)
                    if not kill_server(process.pid):
                        return "no server found to kill"
                    waits_to_kill = False
                time.sleep(0.1)
        finally:
            stop(process)
    if process.returncode:
        return (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
    return "it ended before its server was killed" if waits_to_kill else ""


def run_part(part: str, model: str | None, out: Path, deadline: float) -> dict[str, Any]:
    path, log = out / f"{part}.yaml", out / f"{part}.log"
    started = time.monotonic()
    if part == "eval":
        (export,) = sorted((out / "runs").glob("sync*/export"))[-1:] or [None]
        if export is None:
            return {"failed": "nothing exported by the part sync"}
        where = out / f"eval-{time.time_ns()}"
        command = ["sandbox_rl.cli", "eval", str(out / "sync.yaml"), "--model", str(export)]
        command += ["--output", str(where), "evaluation.tasks=16"]
        if why := run_process([sys.executable, "-m", *command], log, deadline):
            return {"failed": why}
        return {"seconds": time.monotonic() - started}
    path.write_text(yaml.safe_dump(recipe(part, model, out, gpu=torch.cuda.is_available())))
    before = set((out / "runs").glob(f"{part}*/metrics.jsonl"))
    runs = len([p for p in (out / "runs").glob(f"{part}*") if p.is_dir()])
    run = out / "runs" / (part if runs == 0 else f"{part}-{runs + 1}")
    kill_after = run / "metrics.jsonl" if part == "restart" else None
    command = [sys.executable, "-m", "sandbox_rl", "train", str(path)]
    if why := run_process(command, log, deadline, kill_after=kill_after):
        return {"failed": why}
    (metrics,) = set((out / "runs").glob(f"{part}*/metrics.jsonl")) - before
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    seconds = time.monotonic() - started
    made = recipe(part, model, out, gpu=torch.cuda.is_available())
    return {"seconds": seconds} | judged(part, lines, made, gpu=torch.cuda.is_available())


def judged(part: str, lines: list[dict[str, Any]], made: dict[str, Any], *, gpu: bool) -> dict[str, Any]:
    """What the log lines of a run say; `failed` if they are not as they should be.

    Args:
        made: the recipe of the run.
    """
    steps = [line for line in lines if "grad_norm" in line]

    def median(key: str) -> float | None:
        values = [step[key] for step in steps if step.get(key) is not None]
        return statistics.median(values) if values else None

    found: dict[str, Any] = {"updates": len(steps)}
    found |= {key: median(key) for key in (ASYNC_KEYS if part == "async" else SYNC_KEYS)}
    if part == "early-stop":
        found["over_sampling/cancelled"] = sum(step["over_sampling/cancelled"] for step in steps)
    found["updates that moved weights"] = sum(step["grad_norm"] > 0 for step in steps)
    if wrong := _wrong(part, found, lines, made, gpu=gpu):
        found["failed"] = wrong
    elif not any(step["grad_norm"] > 0 for step in steps[:-1]):
        found["failed"] = "no update moved the weights, so that agreement shows nothing"
    return found


def _wrong(
    part: str, found: dict[str, Any], lines: list[dict[str, Any]], made: dict[str, Any], *, gpu: bool
) -> str:
    held_out = sum("eval/accuracy" in line for line in lines)
    if part == "sync" and held_out != 2:
        return f"{held_out} held-out evaluations, expected 2"
    if part == "async":
        allowed = made["grpo"]["max_staleness"]
        ages = [line["off_policy/age_max"] for line in lines if "off_policy/age_max" in line]
        oldest = max(ages, default=None)
        return "" if oldest is not None and oldest <= allowed else f"age {oldest}, expected at most {allowed}"
    changed = found["update/changed"]
    if part == "masters" and (changed is None or changed < MOVED):
        return f"updates changed {changed} of what they should, expected {MOVED} or more"
    gap, bound = found["mismatch/mean"], MISMATCH["cuda" if gpu or part == "masters" else "cpu"]
    return "" if gap is not None and gap <= bound else f"mismatch {gap} nats, expected at most {bound}"


def main() -> int:
    here = parts_of(torch.cuda.device_count())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="directory of a model with a chat template; default: a tiny one")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, default=Path("gpu-check"))
    parser.add_argument("--parts", nargs="+", choices=here, help="default: all that can run here")
    parser.add_argument("--json", type=Path, help="the report once more")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    report = out / "gpu_check.json"
    settings = {"device": device_name(), "model": options.model}
    if (found := earlier(report, settings)) is None:
        return 2
    found |= settings
    parts: dict[str, Any] = found.setdefault("parts", {})
    print(f"device: {found['device']}", flush=True)
    for part in parts_of(2):
        if part not in here:
            print(f"{part:10} not run: it needs {'two cards' if part == 'nccl' else 'a card'}", flush=True)
    wanted = options.parts or here
    for part in wanted:
        if "failed" in parts.get(part, {"failed": ""}):
            parts[part] = run_part(part, options.model, out, deadline)
            save(report, found)
        for key, value in parts[part].items():
            shown = f"{value:.4g}" if isinstance(value, float) else value
            print(f"{part:10} {key:42} {shown}", flush=True)
    failed = [part for part in wanted if "failed" in parts[part]]
    found["ok"] = not failed
    save(report, found)
    if options.json is not None:
        options.json.write_text(json.dumps(found))
    print(f"FAILED: {', '.join(failed)}; their logs lie in {out}" if failed else "ok")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
