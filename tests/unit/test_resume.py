"""`--resume`: the same run, its records once, and what of its recipe may change."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations import TensorBoardCallback

from sandbox_rl.config.load import load_recipe
from sandbox_rl.errors import ConfigError, DataError
from sandbox_rl.journal import Index, Journal, read_journal
from sandbox_rl.ledger import Ledger, Update, read_ledger
from sandbox_rl.lock import alone
from sandbox_rl.runs.directory import RunDirectory, find_run, set_aside
from sandbox_rl.runs.history import History, set_lines_aside, step_of_line
from sandbox_rl.runs.resume import Earlier, begin, prompt_digests, sizes_of
from sandbox_rl.runs.watching import purge_replayed
from sandbox_rl.tasks.load import load_tasks
from sandbox_rl.training.checkpoints import SAVING, mark_complete
from sandbox_rl.training.fields import check_numbers
from sandbox_rl.training.grpo import grpo_config
from sandbox_rl.types import Answer, AnswerStatus, Reward, Rollout, StopReason, Task, Trajectory
from tests import prepared

SOURCE = {"type": "reasoning_gym", "dataset": "chain_sum", "size": 5, "domain": "arithmetic"}
RECIPE = {
    "name": "r",
    "model": {"path": "some/model"},
    "data": {"sources": [SOURCE]},
    "grpo": {"max_steps": 4, "per_device_train_batch_size": 8, "num_generations": 4, "learning_rate": 1e-6},
}

ANOTHER = {"grpo__learning_rate": 2e-6}
"""A recipe whose updates are others: it uses nothing that was sampled for those after the checkpoint."""

WORDS = {"arithmetic": "a digest"}


def recipe(tmp_path, **changes):
    raw = json.loads(json.dumps(RECIPE | {"output_dir": str(tmp_path / "runs")}))
    for field, value in changes.items():
        *path, last = field.split("__")
        block = raw
        for name in path:
            block = block.setdefault(name, {})
        block[last] = value
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw))
    return load_recipe(tmp_path / "r.yaml")


def sizes(loaded, tmp_path):
    args = grpo_config(
        loaded.grpo,
        checkpoints=tmp_path,
        name="r",
        seed=0,
        estimator="paper",
        max_tokens=100,
        dtype=torch.float32,
    )
    return args, sizes_of(loaded, args)


def start(tmp_path, earlier=None, *, name="r", **changes):
    loaded = recipe(tmp_path, **changes)
    args, found = sizes(loaded, tmp_path)
    tasks = load_tasks(loaded.data, split="train", base_dir=tmp_path)
    run = RunDirectory.new(tmp_path / "runs", name) if earlier is None else earlier.run
    history, left = begin(
        run, earlier, loaded, tasks=tasks, sizes=found, prompts=WORDS, steps=args.max_steps, processes=1
    )
    if left.replaced:
        with Journal(run.journal) as journal:
            journal.replaced(left.replaced)
    return history


def checkpoint(run, step):
    path = run.checkpoints / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_bytes(b"x")
    Ledger(run.ledger).commit(path)
    mark_complete(path)


def write(path, *lines):
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def record(run, *episodes):
    """Episodes in the journal: (id, phase, step)."""
    with Journal(run.journal) as journal:
        for name, phase, step in episodes:
            trajectory = Trajectory("t", (1,), (), StopReason.TIMEOUT, Answer(AnswerStatus.MISSING), name)
            journal.ended(Rollout(trajectory, Reward(0.0), Task("t", "?", "1")), phase=phase, step=step)


def standing(run):
    return [r["episode_id"] for r in read_journal(run.journal)]


def test_updates_that_are_done_again_stand_once_and_nothing_is_lost(tmp_path):
    run = start(tmp_path).run
    checkpoint(run, 2)
    write(run.metrics, *({"step": step, "loss": 0.0} for step in (1, 2, 3)), {"step": 3, "eval/accuracy": 1})
    record(run, ("eval-0", "eval", 0), *((f"train-{step}", "train", step) for step in range(4)))
    record(run, ("eval-2", "eval", 2), ("eval-3", "eval", 3), ("cut-2", "cancelled", 2))

    earlier = Earlier.of(recipe(tmp_path, **ANOTHER), "")
    assert earlier.step == 2
    history = start(tmp_path, earlier, **ANOTHER)
    assert steps(run.metrics) == [1, 2]
    assert standing(run) == ["eval-0", "train-0", "train-1", "eval-2"]
    with Index(run.journal) as index:
        assert index.refresh() == 8, "nothing is lost"
    assert steps(run.path / "replaced" / "metrics-1.jsonl") == [3, 3]
    assert [history.again(step) for step in range(6)] == [0, 0, 1, 1, 0, 0]
    assert (history.starts, history.finished_at) == (2, None)


def test_the_ledger_s_lines_beyond_the_checkpoint_are_set_aside(tmp_path):
    run = start(tmp_path).run
    ledger = Ledger(run.ledger)
    for number in (1, 2):
        ledger.write(Update(number, 0.0, ()))
    checkpoint(run, 2)
    before = run.ledger.read_bytes()
    ledger.write(Update(3, 0.0, ()))
    run.ledger.write_bytes(run.ledger.read_bytes() + b'{"update":4')
    history = start(tmp_path, Earlier.of(recipe(tmp_path), ""))
    assert run.ledger.read_bytes() == before
    assert b'"update":3' in (run.path / "replaced" / "ledger-1.jsonl").read_bytes()
    ledger = Ledger(run.ledger)
    ledger.write(Update(3, 1.0, ()))
    assert [update.number for update in read_ledger(history.run.ledger)] == [1, 2, 3]


def test_a_ledger_that_is_not_the_checkpoint_s_is_refused_before_anything_moves(tmp_path):
    run = start(tmp_path).run
    Ledger(run.ledger).write(Update(1, 0.0, ()))
    checkpoint(run, 1)
    write(run.metrics, {"step": 2, "loss": 0.0})
    run.ledger.write_bytes(run.ledger.read_bytes().replace(b'"update":1', b'"update":9'))
    with pytest.raises(DataError, match=r"ledger.jsonl: the first \d+ bytes are not those"):
        start(tmp_path, Earlier.of(recipe(tmp_path), ""))
    assert steps(run.metrics) == [2]
    assert not (run.path / "replaced").exists()


def test_a_kill_while_records_are_moved_loses_none(tmp_path):
    """Between the two renames they stand in both files; the next start moves them again."""
    path = tmp_path / "metrics.jsonl"
    write(path, {"step": 0}, {"step": 1})
    (tmp_path / "replaced").mkdir()
    write(tmp_path / "replaced" / "metrics-1.jsonl", {"step": 1})
    set_lines_aside(path, lambda line: step_of_line(line) == 1, tmp_path / "replaced" / "b.jsonl")
    assert steps(path) == [0]
    assert steps(tmp_path / "replaced" / "b.jsonl") == [1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "replaced"]


def test_a_second_resume_replaces_what_the_first_has_sampled_again(tmp_path):
    run = start(tmp_path).run
    checkpoint(run, 1)
    record(run, ("train-0", "train", 0), ("train-1", "train", 1))
    start(tmp_path, Earlier.of(recipe(tmp_path, **ANOTHER), ""), **ANOTHER)
    record(run, ("train-1-r1", "train", 1))
    assert standing(run) == ["train-0", "train-1-r1"]
    history = start(tmp_path, Earlier.of(recipe(tmp_path), ""))
    assert standing(run) == ["train-0"]
    assert history.again(1) == 2


def test_nothing_moves_where_nothing_is_replaced(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, {"step": 1})
    inode = path.stat().st_ino
    set_lines_aside(path, lambda line: False, tmp_path / "replaced" / "m.jsonl")
    assert path.stat().st_ino == inode
    assert not (tmp_path / "replaced").exists()


def test_an_evaluation_that_is_done_again_is_replaced(tmp_path):
    """Killed in the evaluation after training: it belongs to the step of the checkpoint, and comes again."""
    run = start(tmp_path).run
    checkpoint(run, 4)
    record(run, ("train-3", "train", 3), ("eval-4", "eval", 4))
    write(run.metrics, {"step": 4, "loss": 0.0}, {"step": 4, "eval/accuracy": 1})
    start(tmp_path, Earlier.of(recipe(tmp_path), ""))
    assert standing(run) == ["train-3"]
    assert ["loss" in line for line in run.metrics.read_text().splitlines()] == [True]


def test_what_was_changed_is_recorded_field_by_field(tmp_path):
    run = start(tmp_path).run
    checkpoint(run, 2)
    changes = {"grpo__learning_rate": 5e-6, "rollout__concurrency": 7, "grpo__max_steps": 9}
    earlier = Earlier.of(recipe(tmp_path, **changes), "")
    history = start(tmp_path, earlier, **changes)
    recorded = {
        e["field"]: (e["step"], e["from"], e["to"]) for e in history.events if e["event"] == "changed"
    }
    assert recorded == {
        "grpo.learning_rate": (2, 1e-6, 5e-6),
        "rollout.concurrency": (2, 64, 7),
        "grpo.max_steps": (2, 4, 9),
    }
    assert "# changed at step 2: grpo.learning_rate: 1e-06 -> 5e-06\n" in run.recipe.read_text()
    assert load_recipe(run.recipe) == recipe(tmp_path, **changes)
    assert not Earlier.of(recipe(tmp_path, **changes), "").changes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 1),
        ("model__path", "another/model"),
        ("model__dtype", "float32"),
        ("model__lora", {"r": 4}),
        ("data__held_out", 0.5),
        ("estimator", "trl"),
        ("curriculum__refill_rounds", 1),
        ("rollout__over_sample", 0.5),
        ("chat__template_options", {"enable_thinking": False}),
        ("policy__type", "vllm"),
        ("grpo__optim", "sgd"),
    ],
)
def test_what_makes_it_another_run_is_refused_by_name(tmp_path, field, value):
    run = start(tmp_path).run
    before = run.recipe.read_bytes()
    with pytest.raises(ConfigError, match=rf"--resume: {field.replace('__', '.')}"):
        Earlier.of(recipe(tmp_path, **{field: value}), "")
    assert run.recipe.read_bytes() == before


def test_other_sizes_are_refused_and_the_same_ones_in_other_words_are_not(tmp_path):
    start(tmp_path)
    earlier = Earlier.of(recipe(tmp_path), "")

    def check(**grpo):
        loaded = recipe(tmp_path, **{f"grpo__{name}": value for name, value in grpo.items()})
        tasks = load_tasks(loaded.data, split="train", base_dir=tmp_path)
        earlier.check(tasks, sizes(loaded, tmp_path)[1], WORDS)

    check()
    check(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    with pytest.raises(ConfigError, match=r"groups per generation are 4 now, but the run .* has 2"):
        check(per_device_train_batch_size=16)
    with pytest.raises(ConfigError, match="episodes per group are 8 now"):
        check(num_generations=8)
    with pytest.raises(ConfigError, match="generations per update are 1/2 now"):
        check(num_iterations=2)


def test_other_tasks_are_refused(tmp_path):
    start(tmp_path)
    tasks = list(load_tasks(recipe(tmp_path).data, split="train", base_dir=tmp_path))
    earlier = Earlier.of(recipe(tmp_path), "")
    with pytest.raises(ConfigError, match="data: the training tasks are not those"):
        earlier.check(tasks[::-1], sizes(recipe(tmp_path), tmp_path)[1], WORDS)


def test_a_finished_run_is_finished_until_it_is_asked_for_more(tmp_path):
    history = start(tmp_path)
    checkpoint(history.run, 4)
    assert Earlier.of(recipe(tmp_path), "").finished(recipe(tmp_path)) is None
    history.with_event("finished", 4)
    for changes in ({}, {"grpo__learning_rate": 1.0}, {"grpo__max_steps": 3}):
        asked = recipe(tmp_path, **changes)
        assert Earlier.of(asked, "").finished(asked) == 4
    more = recipe(tmp_path, grpo__max_steps=5)
    assert Earlier.of(more, "").finished(more) is None


def test_any_run_can_be_named(tmp_path, monkeypatch):
    first, second = start(tmp_path).run, start(tmp_path).run
    assert second.path.name == "r-2"
    runs = tmp_path / "runs"
    assert find_run(runs, "r", "") == second
    assert find_run(runs, "r", "r") == first
    assert find_run(runs, "other", str(first.path)) == first
    with pytest.raises(ConfigError, match=r"--resume 'x': .*expected one of r, r-2"):
        find_run(runs, "r", "x")


def test_a_history_with_a_torn_line_goes_on(tmp_path):
    history = start(tmp_path)
    with (history.run.path / "history.jsonl").open("a") as file:
        file.write('{"event": "resu')
    read = History.read(history.run).with_event("finished", 4)
    assert [e["event"] for e in History.read(history.run).events] == ["started", "finished"]
    assert read.finished_at == 4


def test_a_directory_is_set_aside_under_a_free_name(tmp_path):
    for content in "ab":
        (tmp_path / "suite").mkdir()
        (tmp_path / "suite" / "results.json").write_text(content)
        set_aside(tmp_path / "suite")
    set_aside(tmp_path / "suite")
    found = {p.name: (p / "results.json").read_text() for p in tmp_path.iterdir()}
    assert found == {"suite.replaced-1": "a", "suite.replaced-2": "b"}


def test_prompts_are_known_by_their_words_not_by_their_place(tmp_path):
    for place, words in (("here", "Compute."), ("there", "Compute."), ("other", "Guess.")):
        (tmp_path / place).mkdir()
        text = yaml.safe_dump({"system": words, "instance": "{problem_statement}"})
        (tmp_path / place / "arithmetic.yaml").write_text(text)
    here, there, other = (
        prompt_digests(["arithmetic"], [tmp_path / place]) for place in ("here", "there", "other")
    )
    assert here == there != other
    history = start(tmp_path)
    history = History(history.run, ()).with_event("started", 0, prompts=here)
    earlier = replace(Earlier.of(recipe(tmp_path, prompts=["there"]), ""), history=history)
    assert set(earlier.changes) == {"prompts"}, "the place is recorded"
    loaded = recipe(tmp_path)
    tasks, found = load_tasks(loaded.data, split="train", base_dir=tmp_path), sizes(loaded, tmp_path)[1]
    earlier.check(tasks, found, there)
    with pytest.raises(ConfigError, match=r"prompts: .* has other words"):
        earlier.check(tasks, found, other)


def test_asynchronous_episodes_that_are_sampled_again_stand_once(tmp_path):
    """A group stays if it is behind the checkpoint, whatever version its episodes were journaled with."""
    served = {"mode": "async", "policy": {"type": "vllm"}}
    run = start(tmp_path, **served).run
    checkpoint(run, 2)
    state = {"first": 2, "ahead": [3], "under_way": [2]}
    (run.checkpoints / "checkpoint-2" / "groups.json").write_text(json.dumps(state))
    mark_complete(run.checkpoints / "checkpoint-2")
    ids = [f"train-{group:06d}-0000" for group in range(5)]
    record(run, *((name, "train", 1 + n % 3) for n, name in enumerate(ids)))
    start(tmp_path, Earlier.of(recipe(tmp_path, **served), ""), **served)
    assert standing(run) == [ids[0], ids[1], ids[3]]


def test_what_a_kill_has_left_of_a_save_is_removed_and_damaged_checkpoints_are_set_aside(tmp_path):
    run = start(tmp_path).run
    for step in (2, 3, 4):
        checkpoint(run, step)
    for name in (SAVING, ".pruned-checkpoint-1", "notes"):
        (run.checkpoints / name / "inner").mkdir(parents=True)
    (run.checkpoints / "checkpoint-3" / "weights").write_bytes(b"y")  # of the same size
    (run.checkpoints / "checkpoint-4" / "weights").unlink()
    earlier = Earlier.of(recipe(tmp_path), "")
    assert {path.name: why for path, why in earlier.damaged.items()} == {
        "checkpoint-3": "weights differs from its SHA-256",
        "checkpoint-4": "weights cannot be read (No such file or directory)",
    }
    assert earlier.step == 2
    start(tmp_path, earlier)
    left = sorted(path.name for path in run.checkpoints.iterdir())
    assert left == ["checkpoint-2", "checkpoint-3.replaced-1", "checkpoint-4.replaced-1", "notes"]


def test_tensorboard_shows_no_update_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))
    state = SimpleNamespace(is_world_process_zero=True, is_hyper_param_search=False, global_step=0)
    args = SimpleNamespace(to_json_string=lambda: "{}", output_dir=str(tmp_path))

    def log(loss, steps, resumed_from=None):
        callback = TensorBoardCallback()
        if resumed_from is not None:
            handler = SimpleNamespace(callbacks=[callback])
            purge_replayed(SimpleNamespace(callback_handler=handler), resumed_from)
        callback.on_train_begin(args, state, None)
        for state.global_step in steps:
            callback.on_log(args, state, None, logs={"loss": loss})
        callback.on_train_end(args, state, None)

    log(1.0, (1, 2, 3))
    log(2.0, (3, 4), resumed_from=2)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
        (4, 2.0),
    ]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("adam_epsilon", 0, "more than 0"), ("num_generations", None, "null"), ("temperature", None, "null")],
)
def test_numbers_that_cannot_be_meant_are_one_line(field, value, said):
    with pytest.raises(ConfigError, match=rf"grpo.{field}: .*{said}"):
        check_numbers({field: value})


def tree(directory):
    return {path: (path.read_bytes() if path.is_file() else None) for path in directory.rglob("*")}


def test_a_directory_that_cannot_be_gone_on_with_is_refused_and_stays_as_it_is(tmp_path):
    def first_line(run, **changes):
        path = run.path / "history.jsonl"
        line = json.loads(path.read_text()) | changes
        path.write_text(json.dumps(line) + "\n")

    cases = {
        "has no history.jsonl": lambda run: (run.path / "history.jsonl").unlink(),
        "has no recipe.yaml": lambda run: run.recipe.unlink(),
        "does not say how": lambda run: (run.path / "history.jsonl").write_bytes(b"\x00\xff\n[1]\n"),
        "has format 7, expected 1": lambda run: first_line(run, format=7),
        "has format None": lambda run: first_line(run, format=None),
    }
    for place, (said, damage) in enumerate(cases.items()):
        run = start(tmp_path, name=f"r{place}").run
        damage(run)
        before = tree(run.path)
        with pytest.raises(ConfigError, match=said) as refused:
            Earlier.of(recipe(tmp_path), f"r{place}")
        assert str(run.path) in str(refused.value)
        assert tree(run.path) == before
    (tmp_path / "runs" / "mine").mkdir()
    (tmp_path / "runs" / "mine" / "letter.txt").write_text("x")
    with pytest.raises(ConfigError, match="neither a run's directory"):
        Earlier.of(recipe(tmp_path), "mine")


HOLDER = """
import sys, time
from pathlib import Path
from sandbox_rl.lock import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_that_another_process_writes_is_refused_until_that_has_gone(tmp_path):
    run = start(tmp_path).run
    Earlier.of(recipe(tmp_path), "")
    holder = prepared.Popen([sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    before = tree(run.path)
    for refused in (lambda: Earlier.of(recipe(tmp_path), ""), lambda: alone(run.path).__enter__()):
        with pytest.raises(ConfigError, match=f"process {holder.pid} on .* is at work on {run.path}"):
            refused()
    assert tree(run.path) == before
    holder.kill()
    holder.communicate()
    Earlier.of(recipe(tmp_path), "")
    with alone(run.path):
        pass
