"""The GPU scripts write recipes that are valid, wherever they are read."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from sandbox_rl.config.load import load_recipe
from sandbox_rl.model_builders import training_arguments
from tests import prepared
from tests.processes import commands, gone

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        patch.setitem(sys.modules, name, module)  # dataclasses look for it
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("model", [None, "some/model"])
def test_recipes_are_valid_on_both_kinds_of_machine(tmp_path, gpu, model):
    check, demo = load("gpu_check"), load("gpu_demo")
    parts = [part for part in check.parts_of(2 * gpu) if part != "eval"]
    written = [check.recipe(part, model, tmp_path, gpu=gpu) for part in parts]
    options = argparse.Namespace(model=model, engine=None, tasks=20, steps=None)
    written.append(demo.recipe(0, options, tmp_path, gpu=gpu))
    for number, recipe in enumerate(written):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        loaded = load_recipe(path)
        args = training_arguments(loaded, tmp_path)
        if loaded.mode == "sync":
            assert args.generation_batch_size % args.num_generations == 0


@pytest.mark.parametrize(
    ("part", "change", "why"),
    [
        ("sync", {}, None),
        ("sync", {"mismatch/mean": 0.1}, "mismatch 0.1 nats"),
        ("sync", {"grad_norm": 0.0}, "no update moved"),
        ("masters", {"mismatch/mean": 0.01}, None),
        ("masters", {"update/changed": 0.01}, "updates changed 0.01"),
        ("async", {}, None),
        ("async", {"off_policy/age_max": 3.0}, "age 3.0, expected at most 2"),
        ("async", {"off_policy/age_max": None}, "age None"),
        ("lora", {"mismatch/mean": None}, "mismatch None"),
    ],
)
def test_a_part_is_judged_by_what_our_trainers_log(part, change, why):
    """The names are those that the two trainers write, also where the value decides nothing."""
    check = load("gpu_check")
    line = {"grad_norm": 1.0, "mismatch/mean": 1e-6, "update/changed": 0.99, "off_policy/age_max": 2.0}
    line = {name: value for name, value in (line | change).items() if value is not None}
    lines = [{"eval/accuracy": 0.5}, line, line, {"eval/accuracy": 0.5}]
    found = check.judged(part, lines, {"grpo": {"max_staleness": 2}}, gpu=False)
    assert found.get("failed", "").startswith(why) if why else "failed" not in found, found
    logged = {"kl", "ratio", *(name for name in check.ASYNC_KEYS if name.startswith("perf/"))}
    ours = (SCRIPTS.parent / "sandbox_rl" / "training" / "asynchronous" / "rows.py").read_text()
    assert all(name in logged or name in ours for name in check.ASYNC_KEYS)


def test_a_curve_counts_the_later_of_two_steps(tmp_path):
    demo = load("gpu_demo")
    lines = [
        '{"step": 0, "eval/accuracy": 0.5, "eval/low": 0.4, "eval/high": 0.85}',
        '{"step": 1, "reward": 0.4}',
        '{"step": 1, "reward": 0.6}',
        '{"step": 2, "eval/accuracy": 0.75, "eval/low": 0.4, "eval/high": 0.85, "eval/accuracy/sums": 0.9}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert demo.curve(tmp_path)[1] == {1: 0.6}
    found = demo.summary(tmp_path)
    assert (found["gain"], found["updates"], found["after"]["sums"]) == (0.25, 2, 0.9)
    pytest.importorskip("matplotlib")
    demo.draw({0: tmp_path}, tmp_path / "curve.png", "a curve")
    assert (tmp_path / "curve.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("script", "report"),
    [("gpu_check", "gpu_check.json"), ("gpu_demo", "demo.json"), ("gpu_bench", "gpu_bench.json")],
)
@pytest.mark.parametrize("other", [{"device": "NVIDIA H100"}, {"model": "another"}])
def test_what_another_device_or_model_has_done_is_not_taken_for_this_one_s(
    script, report, other, tmp_path, monkeypatch, capsys
):
    """A check that was rehearsed on a CPU would pass on a card without having run there."""
    module = load(script)
    mine = {"device": module.device_name(), "model": "tiny" if script == "gpu_demo" else None}
    (tmp_path / report).write_text(json.dumps(mine | other | {"parts": {"sync": {"seconds": 1.0}}}))
    before = (tmp_path / report).read_bytes()
    monkeypatch.setattr(sys, "argv", [script, "--out", str(tmp_path)])
    monkeypatch.setattr(module, "start", lambda *given: pytest.fail("something was started"))
    assert module.main() == 2
    (name,) = other
    assert f"is of another {name}" in capsys.readouterr().out
    assert (tmp_path / report).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [report]


def test_a_demo_ends_with_its_minutes_and_leaves_no_process(tmp_path):
    command = [sys.executable, str(SCRIPTS / "gpu_demo.py"), "--seeds", "1", "--minutes", "0.1"]
    done = prepared.run([*command, "--out", str(tmp_path)], timeout=400)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "seed 0: out of time, 0 updates" in done.stdout
    report = json.loads((tmp_path / "demo.json").read_text())
    assert [seed["state"] for seed in report["seeds"].values()] == ["out of time"]
    gone({pid for pid, words in commands().items() if str(tmp_path) in " ".join(words)})


def test_a_demo_goes_on_where_it_was_cut(tmp_path, monkeypatch):
    """What is exported is not trained again; what has a directory is resumed; an error is not a cut."""
    demo = load("gpu_demo")
    commands = []

    def start(command, output):
        commands.append(command)
        return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({codes.pop(0)})"])

    monkeypatch.setattr(demo, "start", start)
    run, codes = tmp_path / "run", [0, 0, 3]
    later = time.monotonic() + 600
    assert demo.train(tmp_path / "r.yaml", run, tmp_path / "log", later) == 0
    run.mkdir()
    assert demo.train(tmp_path / "r.yaml", run, tmp_path / "log", later) == 0
    assert demo.train(tmp_path / "r.yaml", run, tmp_path / "log", later) == 3
    assert [command[-1] for command in commands] == [str(tmp_path / "r.yaml"), "--resume", "--resume"]
