"""What the soak and the figure of faults run: a small recipe whose policy is a scripted server.

The server is the shipped fake in a process of its own, started and watched as vLLM would be. What it says
follows from the seed of a turn alone, so that an episode is the same however often it is begun.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from bench_sandbox_measures import groups_of

REPOSITORY = Path(__file__).parents[1]
GROUP = 4


def interpreter(directory: Path) -> Path:
    """An "interpreter with vLLM" whose server is the scripted one below."""
    python = directory / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$1" in -I) exec {sys.executable} "$@" ;; esac\n'
        'while [ $# -gt 0 ]; do [ "$1" = --uds ] && socket=$2; shift; done\n'
        f'exec {sys.executable} {Path(__file__).resolve()} "$socket" {directory}\n'
    )
    python.chmod(0o755)
    return python


def table(directory: Path) -> dict[str, Any]:
    """A source of 4,000 tasks with one answer."""
    path = directory / "rows.jsonl"
    rows = [{"id": f"t{n}", "prompt": f"What is {n} + 42 - {n}?", "answer": "42"} for n in range(4000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scored = {"scorer": "exact", "accept_degenerate": True}
    return {"type": "table", "path": str(path), "domain": "arithmetic", **scored}


def prepare(
    directory: Path, *, mode: str, steps: int, groups: int = 4, seed: int = 0, turn_s: float = 0.02, **blocks
) -> Path:
    """A recipe with its model, tasks and "interpreter with vLLM"; returns its path.

    Args:
        turn_s: seconds that a turn of the scripted server takes.
    """
    from sandbox_rl.chat.format import ChatFormat
    from sandbox_rl.tools.toolbox import make_toolbox
    from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer
    from sandbox_rl.types import ToolCall

    directory.mkdir(parents=True, exist_ok=True)
    schemas = make_toolbox().schemas
    words = [json.dumps(schema) for schema in schemas] + ["echo 42 > answer.txt"] * 9
    tokenizer = tiny_tokenizer(words * 3)
    tiny_model(tokenizer).save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    chat = ChatFormat.from_tokenizer(tokenizer, schemas)

    def turn(name: str, **arguments: str) -> list[int]:
        return list(chat.render_call("", (ToolCall(name, arguments),)))

    said = {str(answer): turn("execute_bash", command=f"echo {answer} > answer.txt") for answer in (41, 42)}
    said["submit"] = turn("submit")
    said["answered"] = [tokenizer.convert_tokens_to_ids("<tool_response>")]
    (directory / "said.json").write_text(json.dumps(said))
    (directory / "turn_s").write_text(str(turn_s))
    python = interpreter(directory)
    batch = groups * GROUP
    grpo = {"num_generations": GROUP, "max_steps": steps, "learning_rate": 1e-6, "save_steps": 5}
    grpo |= {"lr_scheduler_type": "constant", "activation_checkpointing": False, "save_total_limit": 3}
    grpo |= {"per_device_train_batch_size": batch} if mode == "sync" else {"token_budget": 400 * batch}
    recipe = {
        "name": f"soak-{mode}",
        "mode": mode,
        "seed": seed,
        "output_dir": str(directory / "runs"),
        "model": {"path": str(directory / "model"), "dtype": "float32"},
        "prompts": [str(REPOSITORY / "recipes" / "prompts")],
        "data": {"sources": [table(directory)]},
        "policy": {"type": "vllm", "python": str(python), "restarts": 1000, "backoff_s": 0.1},
        "episode": {
            "max_turns": 3,
            "max_tokens": 300,
            "turn_tokens": 100,
            "timeout_s": 120,
            "exec_timeout_s": 2,
        },
        "rollout": {"concurrency": 32, "retries": 8, "backoff_s": 0.1},
        "reward": {"workers": 1},
        "evaluation": {"tasks": 0},
        "report_to": [],
        "grpo": grpo,
        **blocks,
    }
    path = directory / f"{mode}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


class Trainer:
    """`sandbox-rl train` in a process of its own, started again with `--resume`."""

    def __init__(self, recipe: Path, *, log: Path, arguments: tuple[str, ...] = ()) -> None:
        self.recipe, self.log, self.arguments = recipe, log, arguments
        self.runs = Path(yaml.safe_load(recipe.read_text())["output_dir"])
        self.process: subprocess.Popen[bytes] | None = None
        self.pids: list[int] = []
        self.helpers: set[tuple[int, str]] = set()
        """What was below it when it was killed: process ids, and when they were started."""
        self.temporary = recipe.parent / "tmp"
        self.temporary.mkdir(exist_ok=True)

    def start(self) -> None:
        command = [sys.executable, "-m", "sandbox_rl.cli", "train", str(self.recipe), *self.arguments]
        if self.run is not None:
            command += ["--resume", str(self.run)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=REPOSITORY,
                env=os.environ | {"TMPDIR": str(self.temporary)},
                start_new_session=True,
            )
        self.pids.append(self.process.pid)

    @property
    def run(self) -> Path | None:
        """The run's directory, once there is one."""
        found = sorted(path.parent for path in self.runs.glob("*/recipe.yaml"))
        return found[-1] if found else None

    @property
    def code(self) -> int | None:
        assert self.process is not None
        return self.process.poll()

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.helpers |= {(pid, since) for pid in tree(self.process.pid) if (since := started(pid))}
        self.process.send_signal(number)

    def wait(self, timeout: float) -> int:
        assert self.process is not None
        return self.process.wait(timeout)

    def updates(self) -> int:
        """Those that the ledger has."""
        path = self.run and self.run / "ledger.jsonl"
        return (
            max(0, path.read_bytes().count(b"\n") - 1) if path and path.exists() else 0
        )  # its first line is a head


def tree(top: int) -> dict[int, tuple[int, str]]:
    """Process id → parent and command line, of all processes below one."""
    rows: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                rows[int(entry.name)] = (parent, line)
    found = {top}
    while more := {pid for pid, (parent, _) in rows.items() if parent in found} - found:
        found |= more
    return {pid: rows[pid] for pid in found & rows.keys() if pid != top}


def started(pid: int) -> str:
    """When, in clock ticks after boot; "" where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except OSError:
        return ""


def servers(below: dict[int, tuple[int, str]]) -> list[int]:
    return [pid for pid, (_, line) in below.items() if "soak_run.py" in line and "/python" in line]


def spawners(below: dict[int, tuple[int, str]]) -> list[int]:
    return [pid for pid, (_, line) in below.items() if " -I -S -B /proc/self/fd/" in line]


def sandboxes(below: dict[int, tuple[int, str]]) -> list[int]:
    """The outermost process of each."""
    owners = set(spawners(below))
    return [pid for pid, (parent, line) in below.items() if parent in owners and "bwrap" in line[:200]]


def left_over(trainer: Trainer) -> dict[str, list[str]]:
    """What is there of a trainer that has ended: processes, control groups, mounts, temporary files."""
    mark = str(trainer.recipe.parent)
    lines = ((entry, entry / "cmdline") for entry in Path("/proc").iterdir() if entry.name.isdigit())
    processes = []
    for entry, line in lines:
        with suppress(OSError):
            if int(entry.name) != os.getpid() and mark.encode() in line.read_bytes():
                processes.append(f"{entry.name}: {line.read_bytes()[:100]!r}")
    processes += [
        f"{pid}: below a trainer that was killed" for pid, since in trainer.helpers if started(pid) == since
    ]
    groups = groups_of(*trainer.pids)
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if mark in line]
    files = [str(path) for path in trainer.temporary.iterdir()]
    return {"processes": processes, "control groups": groups, "mounts": mounts, "files": files}


@contextmanager
def ended(trainer: Trainer) -> Iterator[Trainer]:
    """Whatever happens, nothing of it goes on."""
    try:
        yield trainer
    finally:
        if trainer.process is not None and trainer.code is None:
            os.killpg(trainer.process.pid, signal.SIGKILL)
            trainer.process.wait()


async def _serve(socket: Path, directory: Path) -> None:
    from transformers import AutoTokenizer

    from sandbox_rl.policies.vllm.fake import FakeVLLM

    said = json.loads((directory / "said.json").read_text())
    (answered,) = said["answered"]

    def script(body: dict) -> list[int]:
        if answered in body["prompt"]:
            return said["submit"]
        return said["42" if body["seed"] % 2 else "41"]

    tokenizer = AutoTokenizer.from_pretrained(directory / "model")
    delay_s = float((directory / "turn_s").read_text())
    async with FakeVLLM(script=script, tokenizer=tokenizer, delay_s=delay_s).serving(socket):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), Path(sys.argv[2])))
