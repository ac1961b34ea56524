"""The figures of a GPU: each beside its alternative in the same run, as one table and JSON.

    python scripts/gpu_bench.py [--minutes 25] [--only PART ...] [--scale tiny|full] [--seeds 3]
                                [--model DIR] [--out gpu-bench]

    smoke      two parts of gpu_check.py: training by a server whose weights arrive by the default way, and
               float32 masters
    trainer    tokens/s of an update beside a bare forward and backward pass, and beside a published figure;
               in full, and with adapters
    rollouts   sampled tokens/s with sandboxes beside the same token work without tools
    steps      seconds per update: asynchronous beside synchronous, and synchronous beside TRL's own loop
    transfer   seconds to publish weights, and what episodes see of it, beside a reload from disk; then the
               same for LoRA, beside an adapter that is loaded into the server

The parts come in the order of what is learned from them, so that a first call of ten minutes (`--minutes 9`)
brings the most valuable figures; what cannot run here is said first. Each part is a script of its own, runs
in a process of its own and is explained there. Works offline: models
have random weights or are warmed up on the spot, unless `--model` names one that is. What was measured
before, for the same device and scale, is not measured again: after a cut the same command goes on. A part
that does not end within `--minutes` is stopped and is missing; the exit code then is 1, as it is when a part
failed. Bounds that are missed are shown, and are no failure. On a CPU everything runs at a tiny scale, to
show that it does: there the figures say little.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from gpu_common import REPOSITORY, device_name, earlier, save, scale_of, start, stop

FAMILIES = ("smoke", "trainer", "rollouts", "steps", "transfer")
SIZES = {"full": "600M", "tiny": "8M"}
PEERS = {"trainer": ("Qwen3-0.6B", 11_900), "trainer adapters": ("Qwen3-4B", 6_200)}
"""Part → its model at full scale, and what prime-rl has published for it: tokens/s at 16,384 on one H100."""


def commands(scale: str, seeds: int, model: str | None, out: Path) -> dict[str, list[str]]:
    """The arguments of every part's script, in the order of what is learned from them."""
    gpu = torch.cuda.is_available()
    transfers = ["ipc", "shm"] if gpu else ["shm"]
    steps = ["--scale", scale, "--out", str(out / "steps"), *(["--model", model] if model else [])]
    smoke = ["--parts", "sync", "masters", "--out", str(out / "check")]
    parts = {
        "smoke": ["gpu_check.py", *smoke],
        "trainer": ["gpu_bench_trainer.py", "--scale", scale],
        "trainer adapters": ["gpu_bench_trainer.py", "--scale", scale, "--lora"],
        "rollouts": ["gpu_bench_rollouts.py", "--scale", scale],
    }
    for seed in range(seeds):
        ways = ["sync", "async"]
        if seed == 0:
            ways += [] if gpu else ["local"]
            ways += ["trl"] if trl_can_sample() else []
        for way in ways:
            parts[f"steps {way} {seed}"] = ["gpu_bench_steps.py", way, "--seed", str(seed), *steps]
        if seed == 0:
            sizes = ["--sizes", SIZES[scale]]
            parts["transfer"] = ["bench_weights.py", *sizes, "--transfers", *transfers]
            parts["transfer adapters"] = ["bench_adapters.py", *sizes]
    return parts


def trl_can_sample() -> bool:
    """On a card TRL's own loop samples by vLLM in the trainer's environment."""
    return not torch.cuda.is_available() or find_spec("vllm") is not None


def left_out(cards: int) -> list[str]:
    """What is not measured on this machine, and why."""
    found = []
    if not cards:
        found += ["transfer by ipc: it needs a card", "share of time that a card is idle: it needs a card"]
        found += ["the shapes of Qwen3-0.6B and Qwen3-4B at 16,384 tokens: they need a card (--scale full)"]
    if cards < 2:
        found += ["transfer by nccl, servers on cards of their own, weights sharded: they need two cards"]
    if not trl_can_sample():
        found += ["TRL's own loop: it needs vLLM in this environment (pip install 'sandbox-rl[vllm]')"]
    return found


def figures(parts: dict[str, dict[str, Any]]) -> list[tuple[str, float, str, Callable[[float], bool]]]:
    """(what, value, bound, whether the value keeps it) of everything that was measured."""
    found: list[tuple[str, float, str, Callable[[float], bool]]] = []
    for part, values in parts.get("smoke", {}).get("parts", {}).items():
        if (gap := values.get("mismatch/mean")) is not None:
            found.append((f"{part}: sampler - trainer, nats", gap, "<= 0.05", lambda v: v <= 0.05))
        if (changed := values.get("update/changed")) is not None:
            what = "of what an update at 1e-6 should change, in bfloat16"
            found.append((what, changed, ">= 0.90", lambda v: v >= 0.90))
    for name, (model, peer) in PEERS.items():
        if trainer := parts.get(name):
            how = name.removeprefix("trainer").strip() or "in full"
            what = f"update / bare pass, {how}, tokens/s"
            found.append((what, trainer["ratio"], ">= 0.80", lambda v: v >= 0.80))
            if trainer["scale"] == "full":
                what, rate = f"update of {model}, {how}, tokens/s", trainer["tokens_per_s"]
                found.append((what, rate, f">= {peer}", lambda v, peer=peer: v >= peer))
    for row in parts.get("transfer", {}).get("transfers", []):
        name = f"{row['transfer']}, {row['size']}"
        found.append((f"publish by {name}, s", row["publish_s"], "<= 0.2", lambda v: v <= 0.2))
        found.append((f"stall by {name}, s", row["publish_stall_s"], "<= 0.3", lambda v: v <= 0.3))
    for row in parts.get("rollouts", {}).get("rows", []):
        what = f"tokens/s with / without tools, {row['in_flight']} in flight on {row['slots']} slots"
        found.append((what, row["ratio"], ">= 0.90", lambda v: v >= 0.90))
    done = {way: {n.split()[-1] for n in parts if n.startswith(f"steps {way} ")} for way in ("sync", "async")}
    seeds = sorted(done["sync"] & done["async"])
    sync = [parts[f"steps sync {s}"] for s in seeds]
    overlapped = [parts[f"steps async {s}"] for s in seeds]
    if seeds:
        ratio = fmean(map(_seconds, overlapped)) / fmean(map(_seconds, sync))
        found.append((f"async / sync update, {len(seeds)} seeds, s", ratio, "<= 0.75", lambda v: v <= 0.75))
        gap = fmean(p["reward"] for p in overlapped) - fmean(p["reward"] for p in sync)
        found.append(("reward of async - sync", gap, "about 0", lambda v: abs(v) <= 0.05))
        if all("gpu_busy" in part for part in overlapped):
            idle = 1 - fmean(p["gpu_busy"] for p in overlapped)
            found.append(("GPU idle in async, share", idle, "< 0.10", lambda v: v < 0.10))
    ours = parts.get("steps local 0", parts.get("steps sync 0"))
    if ours and (trl := parts.get("steps trl 0")):
        ratio = _seconds(ours) / _seconds(trl)
        found.append(("sync update / TRL's environment_factory, s", ratio, "<= 0.50", lambda v: v <= 0.5))
    return found


def _seconds(part: dict[str, Any]) -> float:
    return float(part["seconds_per_update"])


def run(command: list[str], log: Path, result: Path, deadline: float) -> dict[str, Any] | None:
    """What the part has written, None if time ran out or it failed; `ok` is false where a check failed."""
    result.unlink(missing_ok=True)
    with log.open("wb") as output:
        script = str(REPOSITORY / "scripts" / command[0])
        process = start([sys.executable, script, *command[1:], "--json", str(result)], output)
        try:
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            stop(process)
    if not result.exists():
        return None
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def done(parts: dict[str, dict[str, Any]], name: str) -> bool:
    """Whether a part has been measured, and found well."""
    return name in parts and bool(parts[name].get("ok", True))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--scale", choices=("tiny", "full"))
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--model", help="directory of a model that can solve some of the sums already")
    parser.add_argument("--out", type=Path, default=Path("gpu-bench"))
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    scale = scale_of(options.scale)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    report = out / "gpu_bench.json"
    settings = {"device": device_name(), "scale": scale, "model": options.model}
    if (content := earlier(report, settings)) is None:
        return 2
    content |= settings
    parts: dict[str, dict[str, Any]] = content.setdefault("parts", {})
    seeds = options.seeds or (3 if scale == "full" else 1)
    chosen = {
        name: command
        for name, command in commands(scale, seeds, options.model, out).items()
        if name.split()[0] in options.only
    }
    print(f"{settings['device']}, scale {scale}", flush=True)
    for what in left_out(torch.cuda.device_count()):
        print(f"not measured here: {what}", flush=True)
    for name, command in chosen.items():
        if done(parts, name):
            continue
        started = time.monotonic()
        file = name.replace(" ", "-")
        found = run(command, out / f"{file}.log", out / f"{file}.json", deadline)
        if found is not None:
            parts[name] = found
            save(report, content)
        outcome = "measured" if done(parts, name) else f"MISSING, see {out / file}.log"
        print(f"{name:16} {time.monotonic() - started:6.0f} s  {outcome}", flush=True)
        if time.monotonic() > deadline:
            break
    content["figures"] = [
        {"what": what, "value": value, "bound": bound, "kept": kept(value)}
        for what, value, bound, kept in figures(parts)
    ]
    save(report, content)
    for row in content["figures"]:
        verdict = "kept" if row["kept"] else "missed"
        print(f"{row['what']:62} {row['value']:8.3f}  {row['bound']:8} {verdict}")
    missing = [name for name in chosen if not done(parts, name)]
    if missing:
        print(f"missing: {', '.join(missing)}; the same command goes on with them")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
