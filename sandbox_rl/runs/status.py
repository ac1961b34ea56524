"""What a run is doing now, in a small file for whoever looks on: `status.json`, written when it changes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import torch
from transformers import TrainerCallback, TrainerState, TrainingArguments

from sandbox_rl.policies.vllm.policy import VLLMPolicy
from sandbox_rl.rollout.occupancy import Occupancy

FILE = "status.json"
EVERY_S = 1.0


class RunStatus(TrainerCallback):  # type: ignore[misc]
    """A context manager, and a callback that the trainer must get; on the main process.

    It is news, not a record: where it cannot be written the run goes on.

    Args:
        occupancy: of the engine in this process.
        policy: what samples.
    """

    def __init__(self, directory: Path, occupancy: Occupancy, policy: object) -> None:
        self._path = directory / FILE
        self._occupancy = occupancy
        self._policy = policy if isinstance(policy, VLLMPolicy) else None
        self._progress: Mapping[str, Any] = {}
        self._updating = False
        self._written = b""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="status", daemon=True)

    def __enter__(self) -> RunStatus:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()
        with suppress(OSError):
            self._path.unlink()  # a run that has ended does nothing

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: object, **kwargs: Any
    ) -> None:
        """An update begins, in synchronous training with its episodes."""
        self._follow(args, state, updating=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: object, **kwargs: Any
    ) -> None:
        """It has ended."""
        self._follow(args, state, updating=False)

    def _follow(self, args: TrainingArguments, state: TrainerState, *, updating: bool) -> None:
        done, every = int(state.global_step), int(state.save_steps or 0)
        saves = every > 0 and str(getattr(args.save_strategy, "value", args.save_strategy)) == "steps"
        self._updating = updating
        self._progress = {
            "step": done,
            "steps": int(state.max_steps),
            "next_checkpoint": min(done - done % every + every, int(state.max_steps)) if saves else None,
        }

    def _go_on(self) -> None:
        while True:
            content = orjson.dumps(self._now())
            if content != self._written:
                with suppress(OSError):
                    self._write(content)
            if self._end.wait(EVERY_S):
                return

    def _write(self, content: bytes) -> None:
        """Whole or not at all, but not to the disk: nobody needs it after the machine has gone."""
        temporary = self._path.with_suffix(".json.new")
        temporary.write_bytes(content)
        temporary.replace(self._path)
        self._written = content

    def _now(self) -> dict[str, Any]:
        alive, sampling, waiting = self._occupancy.counts
        doing = "episodes" if alive or waiting else "update" if self._updating else "between"
        return {
            "doing": doing,
            **self._progress,
            "episodes": {"alive": alive, "sampling": sampling, "waiting": waiting},
            "servers": [] if self._policy is None else self._policy.loads,
            "weights": None if self._policy is None else self._policy.version,
            "card": _card(),
        }


def _card() -> dict[str, Any] | None:
    """Of the first card: the share of its memory that is taken, in tenths, and how busy it is in per
    cent, where that can be asked. Asking about others would take some of their memory."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    busy = None
    with suppress(ImportError, RuntimeError):  # without nvidia-ml-py
        busy = round(torch.cuda.utilization(0), -1)
    try:
        free, total = torch.cuda.mem_get_info(0)
    except RuntimeError:  # whoever computes on it will say what is wrong
        return None
    return {"memory": round(1 - free / total, 1), "busy": busy}
