"""What one of two processes does in tests/smoke/test_async_parallel.py: asynchronous training under DDP."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate import PartialState

from sandbox_rl.errors import EngineFault
from sandbox_rl.training.agreement import together
from sandbox_rl.training.asynchronous.progress import GroupProgress
from sandbox_rl.training.checkpoints import last_complete
from tests.smoke.async_support import PlayedRollouts, PlayedWeights, make_async_trainer, save_model
from tests.smoke.support import RecordGradients


class Refuses(PlayedWeights):
    """Servers that do not take the weights of the second update, as every process learns."""

    def publish(self, model: Any, step: int) -> int:
        with together():
            if step == 2 and PartialState().is_main_process:
                raise EngineFault("the servers refuse")
        return super().publish(model, step)


def weights(trainer: Any) -> str:
    """The same on all ranks if all have taken the same updates."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    digest = hashlib.sha256()
    for _, parameter in sorted(model.named_parameters()):
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()[:16]


def gradient_of_two_ranks(directory: Path, rank: int) -> str:
    """One update of the groups that the test itself trains on alone."""
    recorded = RecordGradients()
    options: dict[str, Any] = {"max_staleness": 0, "max_steps": 1, "at_once": 3}
    trainer = make_async_trainer(
        directory, PlayedRollouts(), callbacks=[recorded], token_budget=50, **options
    )
    trainer.train()
    torch.save(recorded.steps[0], directory / f"gradient-{rank}.pt")
    return f"{len(trainer.progress.behind)} groups" if rank == 0 else "no groups"


def whole_run(directory: Path, rank: int) -> str:
    """Six updates, one of the groups late, one checkpoint in between."""
    trainer = make_async_trainer(
        directory, PlayedRollouts(late={2: 2}), max_steps=6, save_steps=3, max_staleness=2
    )
    trainer.train()
    return f"{trainer.state.global_step} {weights(trainer)}"


def signal_to_the_other(directory: Path, rank: int) -> str:
    """Nothing comes any more, and only the rank that has no rollouts is asked to stop."""
    ended: list[bool] = []
    trainer = make_async_trainer(
        directory,
        PlayedRollouts(silent_after=8),
        max_steps=50,
        stop=lambda: rank == 1 and trainer.state.global_step >= 2,
        stopped=lambda: ended.append(True),
    )
    trainer.train()
    checkpoint = last_complete(directory / "run")
    assert checkpoint is not None
    behind = GroupProgress().restore(checkpoint)
    return f"{trainer.state.global_step} {checkpoint.name} {len(behind) > 0} {ended} {weights(trainer)}"


def failure(directory: Path, rank: int, **broken: Any) -> str:
    """Only the main process sees what went wrong."""
    worker = broken.pop("worker", None) or PlayedRollouts()
    trainer = make_async_trainer(directory, worker, max_steps=50, **broken)
    try:
        trainer.train()
    except EngineFault as error:
        return f"{trainer.state.global_step} {error}"
    return "no failure"


def main() -> None:
    directory = Path(sys.argv[1])
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    dead = PlayedRollouts(silent_after=8, failure=EngineFault("the rollouts are over"))
    for name, act in {
        "gradient": gradient_of_two_ranks,
        "whole": whole_run,
        "signal": signal_to_the_other,
        "rollouts": lambda d, r: failure(d, r, worker=dead),
        "servers": lambda d, r: failure(d, r, worker=PlayedRollouts(Refuses())),
    }.items():
        place = directory / name
        if rank == 0:
            place.mkdir()
            save_model(place)
        torch.distributed.barrier()
        # To a file: what two processes print into one pipe gets mixed.
        (directory / f"{name}-{rank}.txt").write_text(act(place, rank))


if __name__ == "__main__":
    main()
