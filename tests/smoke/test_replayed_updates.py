"""Training is computed again from a run's own records, and ends with the same bits."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file, save_file

from sandbox_rl.config.load import load_recipe
from sandbox_rl.config.recipe import resolved
from sandbox_rl.display import Silent
from sandbox_rl.errors import ConfigError, DataError
from sandbox_rl.fakes import RecordingBackend
from sandbox_rl.journal import Journal
from sandbox_rl.model_builders import training_arguments
from sandbox_rl.replay.bundle import bundle
from sandbox_rl.replay.updates import replay_training, weights_digest
from sandbox_rl.replay.verification import verify
from sandbox_rl.runs.directory import RunDirectory
from sandbox_rl.runs.history import History
from sandbox_rl.runs.plan import RunModel, RunPlan
from sandbox_rl.runs.train import train
from sandbox_rl.training.asynchronous.compositions import CompositionLog, read_compositions
from sandbox_rl.training.asynchronous.progress import GroupProgress
from sandbox_rl.training.asynchronous.trainer import SandboxAsyncTrainer
from sandbox_rl.training.checkpoints import mark_complete
from sandbox_rl.training.groups import group_requests
from sandbox_rl.training.samples import finished_group
from sandbox_rl.types import Task
from tests.journals import edit_lines
from tests.recorded_runs import recipe_of, record, submit, training_scripts
from tests.smoke.async_support import PlayedRollouts, played_rollouts
from tests.smoke.support import TOKENIZER
from tests.unit.rig import write

SIZE = 4


class JournaledRollouts(PlayedRollouts):
    """Writes each group into a journal before it is handed over, as the rollouts' process does."""

    def __init__(self, journal: Journal, **options) -> None:
        super().__init__(**options)
        self._journal = journal

    def group(self, number, version):
        requests = group_requests(Task(str(number), "?", "42"), number, seed=0, size=SIZE)
        rollouts = [
            replace(rollout, trajectory=replace(rollout.trajectory, episode_id=request.id))
            for request, rollout in zip(requests, played_rollouts(number, version), strict=True)
        ]
        for rollout in rollouts:
            self._journal.ended(rollout, phase="train", step=version)
        return finished_group(rollouts, number=number, kind="rloo")


def async_run(directory: Path, *, updates: int, saves: Sequence[int]) -> Path:
    """A run of so many asynchronous updates with rollouts that are played; some groups are late."""
    told = recipe_of(
        directory,
        mode="async",
        policy={"type": "vllm"},
        grpo={"max_steps": updates, "num_generations": SIZE, "learning_rate": 1e-3, "save_steps": saves[0]},
    )
    run = Path(told.output_dir) / told.name
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(resolved(told))
    recipe = load_recipe(run / "recipe.yaml")
    History(RunDirectory(run), ()).with_event("started", 0, processes=1)
    longest = RunModel.of(RunPlan.of(recipe, base_dir=run), recipe.model).longest
    args = training_arguments(recipe, run / "checkpoints", longest=longest)
    args.token_budget = 60  # of this trainer's own packing: several rows, and samples divided
    progress = GroupProgress()
    with Journal(run / "journal") as journal:
        worker = JournaledRollouts(journal, late={1: 2, 5: 1, 9: 3})
        trainer = SandboxAsyncTrainer(
            model=recipe.model.path,
            args=args,
            at_once=3,
            progress=progress,
            train_dataset=Dataset.from_dict({"prompt": ["a"]}),
            processing_class=TOKENIZER,
            rollout_worker=worker,
            weights=worker.weights,
            compositions=CompositionLog(run / "compositions.jsonl"),
        )
        trainer.train()
    return run


@pytest.fixture(scope="module")
def asynchronous(tmp_path_factory):
    return async_run(tmp_path_factory.mktemp("async"), updates=6, saves=[3])


def tree(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


def test_asynchronous_updates_come_out_bit_for_bit(asynchronous):
    before = tree(asynchronous)
    start = weights_digest(asynchronous.parents[1] / "model")
    found = replay_training(asynchronous, 6, display=Silent())
    assert found.differing == {}
    trained = weights_digest(asynchronous / "checkpoints" / "checkpoint-6")
    assert found.recorded == found.replayed == trained != start, "and something was trained"
    assert tree(asynchronous) == before


def test_what_updates_consist_of_is_written_down(asynchronous):
    updates = read_compositions(asynchronous / "compositions.jsonl")
    assert sorted(updates) == [1, 2, 3, 4, 5, 6]
    arrived = [entry for update in updates.values() for entry in update.arrived]
    assert dict(arrived)[1] == 0, "the version that it was admitted with"
    order = [group for group, _ in arrived]
    assert order != sorted(order), "in the order of arrival"
    trained = [part for update in updates.values() for row in update.rows for part in row]
    assert len(trained) == len(set(trained)), "nothing twice"
    groups = [group for update in updates.values() for group in update.groups]
    assert {part[:2] for part in trained} == {(group, index) for group in groups for index in range(SIZE)}
    size = (asynchronous / "compositions.jsonl").stat().st_size
    assert size / len(trained) < 40, "some bytes per sample"


def test_a_journal_that_is_not_that_of_the_run_is_reported(asynchronous, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(asynchronous, copy)
    (lines,) = (copy / "journal").glob("*.jsonl")
    edit_lines(lines, b'"reward":0.25', b'"reward":0.35')
    with pytest.raises(DataError, match="update 1: the journal gives other tokens, log-probs or advantages"):
        replay_training(copy, 3, display=Silent())


def test_weights_that_differ_are_reported(asynchronous, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(asynchronous, copy)
    checkpoint = copy / "checkpoints" / "checkpoint-3"
    weights = load_file(checkpoint / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name].clone()
    weights[name].view(torch.int32).view(-1)[0] ^= 1  # the last bit of one number
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    (checkpoint / "complete.json").unlink()
    mark_complete(checkpoint)
    found = replay_training(copy, 3, display=Silent())
    assert list(found.differing) == [name]
    assert found.recorded != found.replayed


def test_only_a_checkpoint_that_is_there_can_be_compared(asynchronous):
    with pytest.raises(
        ConfigError, match=r"--to-step: 4, but .* no complete checkpoint of it .* one of 3, 6"
    ):
        replay_training(asynchronous, 4, display=Silent())
    history = History.read(RunDirectory(asynchronous))
    path = asynchronous / "history.jsonl"
    before = path.read_bytes()
    try:
        history.with_event("resumed", 3, processes=2)
        with pytest.raises(ConfigError, match="trained by 2 processes, expected a run of one"):
            replay_training(asynchronous, 3, display=Silent())
    finally:
        path.write_bytes(before)


@pytest.fixture(scope="module")
def synchronous(tmp_path_factory):
    """A run that samples nothing and has no sandboxes: it is trained on what was recorded before."""
    tmp_path = tmp_path_factory.mktemp("sync")
    grpo = {"max_steps": 2, "per_device_train_batch_size": 4, "num_generations": 2, "learning_rate": 1e-3}
    recorded = recipe_of(tmp_path, grpo=grpo | {"save_steps": 1}, evaluation={"tasks": 0})

    def script(task, index):
        said = {"sum": "12", "word": "a cat"}[task] if index else "wrong"
        return [(write(said),), submit()]

    tape = record(recorded, training_scripts(recorded, 4, script, size=2), backend=RecordingBackend())
    values = [
        "name=played",
        "model.lora={r: 4}",
        f"policy={{type: recorded, journal: {tape}}}",
        f"sandbox={{type: recorded, journal: {tape}}}",
    ]
    return train(load_recipe(tmp_path / "r.yaml", values), base_dir=tmp_path).run


def test_a_synchronous_run_on_a_cassette_comes_out_bit_for_bit(synchronous):
    lines = [json.loads(line) for line in (synchronous / "metrics.jsonl").read_text().splitlines()]
    assert [line["reward/mean"] for line in lines if "loss" in line] == [0.5, 0.5]
    first, trained = (weights_digest(synchronous / "checkpoints" / f"checkpoint-{n}") for n in (1, 2))
    assert first != trained, "something was trained"
    torch.manual_seed(9)  # adapters begin alike whatever was drawn before
    found = replay_training(synchronous, 2, display=Silent())
    assert found.differing == {}
    assert found.recorded == found.replayed == trained


def test_the_bundle_of_a_run_has_all_that_its_ledger_is_checked_by(synchronous, tmp_path):
    copy = tmp_path / "r"
    shutil.copytree(synchronous, copy)
    found = verify(bundle(copy))
    assert (found.wrong, found.other, found.not_judged, found.left) == ((), [], 0, 0)
    assert found.ledger is not None
    assert (found.ledger.updates, found.ledger.groups, found.ledger.violation) == (2, 4, None)
    ledger = copy / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace("train-000001-0001", "train-000001-0000"))
    broken = verify(bundle(copy, tmp_path / "broken.zip"))
    assert "expected 'train-000001-0001'" in str(broken.ledger)


def test_a_recipe_in_a_bundle_imports_nothing(synchronous, tmp_path, monkeypatch):
    copy = tmp_path / "r"
    shutil.copytree(synchronous, copy)
    made = bundle(copy)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    told = yaml.safe_load((copy / "recipe.yaml").read_text())
    told |= {"tools": ["evil:tool"], "sandbox": {"type": "evil:Settings"}, "modules": [str(tmp_path)]}
    told["data"]["sources"] = [{"type": "evil:Source"}]
    content = yaml.safe_dump(told).encode()
    with zipfile.ZipFile(made) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(members["manifest.json"])
    manifest["files"]["recipe.yaml"] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    members |= {"recipe.yaml": content, "manifest.json": json.dumps(manifest).encode()}
    with zipfile.ZipFile(tmp_path / "hostile.zip", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    path = list(sys.path)
    found = verify(tmp_path / "hostile.zip")
    assert found.ledger is not None
    assert found.ledger.violation is None
    assert not (tmp_path / "ran").exists()
    assert sys.path == path
