"""The GPU scripts write recipes that are valid, wherever they are read."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from sandbox_rl.commands.parts import training_arguments
from sandbox_rl.config.load import load_recipe

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


def test_a_curve_counts_the_later_of_two_steps(tmp_path):
    demo = load("gpu_demo")
    lines = [
        '{"step": 0, "eval/accuracy": 0.5, "eval/half_width": 0.1}',
        '{"step": 1, "reward": 0.4}',
        '{"step": 1, "reward": 0.6}',
        '{"step": 2, "eval/accuracy": 0.75, "eval/half_width": 0.1, "eval/accuracy/sums": 0.9}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert demo.curve(tmp_path)[1] == {1: 0.6}
    found = demo.summary(tmp_path)
    assert (found["gain"], found["updates"], found["after"]["sums"]) == (0.25, 2, 0.9)
    pytest.importorskip("matplotlib")
    demo.draw({0: tmp_path}, tmp_path / "curve.png", "a curve")
    assert (tmp_path / "curve.png").stat().st_size > 5_000
