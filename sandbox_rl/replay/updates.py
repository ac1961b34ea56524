"""Training once more from recorded rollouts, up to a checkpoint, and whether its weights are the same bits.

The recipe, the model that the run began with and the journal are all it takes: no servers, no sandboxes, no
scorers. Updates are those of the one trainer. On CPUs, with the same versions and as many threads, the
weights are equal bit for bit; on GPUs they are with deterministic kernels, and else the largest difference is
told.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import safe_open
from transformers import TrainerCallback, TrainerControl, TrainerState

from sandbox_rl.audit.faults import FaultWatch
from sandbox_rl.cassette import Cassette, recordings
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.display import Display
from sandbox_rl.errors import ConfigError, DataError
from sandbox_rl.journal import Journal
from sandbox_rl.model_builders import settled
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.recorded import RecordedPolicy
from sandbox_rl.replay.recorded_run import RecordedRun
from sandbox_rl.replay.rollouts import NoRollouts, RecordedRollouts, RecordedUpdates
from sandbox_rl.runs.async_training import trainer_of
from sandbox_rl.runs.directory import RunDirectory
from sandbox_rl.runs.history import History
from sandbox_rl.runs.plan import RunModel, RunPlan
from sandbox_rl.runs.policy import RunPolicy, loaded_model
from sandbox_rl.runs.records import Records
from sandbox_rl.runs.resume import tasks_digest
from sandbox_rl.runs.session import Session
from sandbox_rl.runs.starting_point import starting_point
from sandbox_rl.runs.sync_training import sync_trainer
from sandbox_rl.training.asynchronous.compositions import FILE as COMPOSITIONS
from sandbox_rl.training.asynchronous.compositions import read_compositions
from sandbox_rl.training.asynchronous.progress import GroupProgress
from sandbox_rl.training.base_trainer import SandboxTrainer
from sandbox_rl.training.checkpoints import complete_of
from sandbox_rl.training.estimator import advantage_of
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.publication.base import UnsentWeights
from sandbox_rl.training.reuse import FinishedEpisodes
from sandbox_rl.training.stopping import FinishOnSignal


@dataclass(frozen=True, slots=True)
class ReplayedTraining:
    """What came of it.

    Args:
        recorded, replayed: SHA-256 over the names, types, shapes and bytes of all weights.
        differing: name of a tensor → the largest difference of its numbers; nothing if all are equal.
    """

    step: int
    recorded: str
    replayed: str
    differing: dict[str, float]


def replay_training(path: Path, step: int, *, display: Display) -> ReplayedTraining:
    """Compute the updates of a run up to one of its checkpoints again, from its journal.

    Raises:
        ConfigError: no such run or checkpoint, or the run had several processes.
        DataError: the journal lacks what was trained on, or holds something else.
        UserError: data or model are not those that the run was started with.
    """
    run = RecordedRun.open(path)
    checkpoint = complete_of(run.run.checkpoints, step, "--to-step")
    history = History.read(run.run)
    processes = next((e["processes"] for e in history.events if e.get("processes", 1) > 1), 1)
    if processes > 1 or PartialState().num_processes > 1:
        raise ConfigError(
            f"{path}: trained by {processes} processes, expected a run of one, replayed by one: sums over "
            "several are in another order"
        )
    with tempfile.TemporaryDirectory(prefix="sandbox-rl-replay-") as scratch:
        again = _trained(run, history, step, Path(scratch), display)
        found = differing(checkpoint, again)
        return ReplayedTraining(step, weights_digest(checkpoint), weights_digest(again), found)


def _trained(run: RecordedRun, history: History, step: int, scratch: Path, display: Display) -> Path:
    """The checkpoint that the replay ends with."""
    with _session(run, history, scratch, display) as session, _trainer(run, session) as trainer:
        trainer.add_callback(_StopAt(step))
        trainer.train()
    return session.records.run.checkpoints / f"checkpoint-{step}"


@contextmanager
def _session(run: RecordedRun, history: History, scratch: Path, display: Display) -> Iterator[Session]:
    """A session without servers, sandboxes and scorers that writes to `scratch` alone."""
    recipe = _quiet(settled(run.recipe), run.run)
    plan = RunPlan.of(recipe, base_dir=run.run.path)
    if history.started_with("tasks") not in (None, tasks_digest(plan.train_tasks)):
        raise DataError(
            f"{run.run.path}: the training tasks are not those that the run was started with, expected the "
            "same files and options; restore them"
        )
    settings = starting_point(recipe, base_dir=run.run.path, state=PartialState(), display=display)
    model = RunModel.of(plan, settings)
    served = isinstance(recipe.policy, VLLMSettings)
    with ExitStack() as stack:
        loop = stack.enter_context(LoopThread())
        engine: Any = stack.enter_context(loop.entered(RecordedRollouts(run.run.path)))
        loaded = None if recipe.mode == "async" else loaded_model(model)
        nobody = RecordedPolicy(recordings(run.run.path))  # nothing is sampled
        records = Records(
            RunDirectory(scratch),
            History(RunDirectory(scratch), history.events),
            stack.enter_context(Journal(scratch / "journal")),
            None,
            FinishedEpisodes(scratch / "journal"),
            None,
        )
        yield Session(
            plan,
            PartialState(),
            display,
            model,
            RunPolicy(nobody, loaded, None, UnsentWeights(served=served)),
            loop,
            engine,
            records,
            FinishOnSignal(),
            FaultWatch(recipe.reward.max_fault_share),
        )


@contextmanager
def _trainer(run: RecordedRun, session: Session) -> Iterator[SandboxTrainer]:
    recipe = session.plan.recipe
    if recipe.mode == "sync":
        with sync_trainer(session) as trainer:
            yield trainer
        return
    compositions = read_compositions(run.run.path / COMPOSITIONS)
    args = session.plan.args
    with Cassette(run.run.path) as cassette:
        source = RecordedUpdates(
            cassette,
            compositions,
            group_size=args.num_generations,
            advantage=advantage_of(recipe.estimator),
            pad_token_id=session.model.tokenizer.pad_token_id,
        )
        from_record = {"rollout_worker": NoRollouts(), "recorded": source}
        with trainer_of(session, GroupProgress(), audited=False, **from_record) as trainer:
            yield trainer


def _quiet(recipe: Recipe, run: RunDirectory) -> Recipe:
    """The recipe, which saves and measures nothing on the way and tells no tracker: none changes a weight.

    Its warm-up is looked for beside the run, wherever that lies by now.
    """
    grpo = {key: value for key, value in recipe.grpo.items() if key != "save_steps"} | {"save_strategy": "no"}
    return recipe.model_copy(
        update={
            "grpo": grpo,
            "report_to": (),
            "evaluation": recipe.evaluation.model_copy(update={"suite": None}),
            "output_dir": str(run.path.resolve().parent),
        }
    )


class _StopAt(TrainerCallback):  # type: ignore[misc]
    """Saves after so many updates and ends."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Comes after all other callbacks."""
        control.should_save = control.should_training_stop = state.global_step >= self._step


def weights_digest(checkpoint: Path) -> str:
    """SHA-256 over the weights of a checkpoint: names in order, types, shapes, bytes.

    Raises:
        DataError: it holds no weights.
    """
    digest = hashlib.sha256()
    for name, tensor in _tensors(checkpoint):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def differing(recorded: Path, replayed: Path) -> dict[str, float]:
    """Name of each tensor that is not the same, bit for bit → the largest difference of its numbers."""
    before, now = dict(_tensors(recorded)), dict(_tensors(replayed))
    found = {name: float("inf") for name in before.keys() ^ now.keys()}
    for name in before.keys() & now.keys():
        a, b = before[name], now[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            found[name] = float("inf")
        elif _bytes(a) != _bytes(b):
            found[name] = float((a.double() - b.double()).abs().max())
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _tensors(checkpoint: Path) -> Iterator[tuple[str, torch.Tensor]]:
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise DataError(f"{checkpoint}: no *.safetensors there, expected the weights of a checkpoint")
    names: dict[str, Path] = {}
    for path in files:
        with safe_open(path, "pt") as opened:
            names |= dict.fromkeys(opened.keys(), path)
    for name, path in sorted(names.items()):
        with safe_open(path, "pt") as opened:
            yield name, opened.get_tensor(name)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
