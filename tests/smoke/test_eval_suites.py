"""A training run that measures a suite on its own policy as it goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sandbox_rl.config.load import load_recipe
from sandbox_rl.evaluation.results import Results
from sandbox_rl.journal import read_journal
from tests.smoke.support import saved_model
from tests.smoke.test_training import RECIPE, sandbox_rl

SUITE = {
    "name": "sums",
    "prompts": RECIPE["prompts"],
    "parts": [
        {
            "name": name,
            "source": {**RECIPE["data"]["sources"][0], "size": 3, "seed": seed},
        }
        for seed, name in ((1, "one"), (2, "two"))
    ],
    "episode": RECIPE["episode"],
    "rollout": RECIPE["rollout"],
    "sampling": {"temperature": 1.0},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("suites")
    (directory / "sums.yaml").write_text(yaml.safe_dump(SUITE))
    recipe = RECIPE | {
        "output_dir": str(directory / "runs"),
        "model": {"path": saved_model(directory / "model"), "dtype": "float32"},
        "warmup": None,
        # So raw a policy earns nothing; the entropy bonus gives a gradient all the same.
        "grpo": RECIPE["grpo"] | {"max_steps": 3, "per_device_train_batch_size": 4, "entropy_coef": 1.0},
        "evaluation": {"tasks": 0, "suite": {"path": "sums.yaml", "every_steps": 2}},
    }
    (directory / "r.yaml").write_text(yaml.safe_dump(recipe))
    dry = sandbox_rl("train", str(directory / "r.yaml"), "--dry-run")
    assert "ok  suite: sums, 6 tasks every 2 updates" in dry.stdout
    sandbox_rl("train", str(directory / "r.yaml"))
    return directory / "runs" / "smoke"


def test_it_is_measured_every_n_updates_and_at_the_end(run):
    assert sorted(path.name for path in (run / "suites").iterdir()) == ["sums-000002", "sums-000003"]
    for step in (2, 3):
        folder = run / "suites" / f"sums-{step:06d}"
        results = Results.from_json(json.loads((folder / "results.json").read_text()))
        assert results.parts == {"one": (3, 1), "two": (3, 1)}
        assert (results.modes["sandbox"].episodes, results.unjudged) == (6, 0)
        assert "| one |" in (folder / "results.md").read_text()
        # The very policy of that step: its samples carry the number of updates.
        versions = {t["weight_version"] for r in read_journal(folder / "journal") for t in r["turns"]}
        assert versions == {step}


def test_it_is_logged_beside_the_training_metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line for line in lines if "suite/sums/accuracy" in line}
    assert set(logged) == {2, 3}
    for name in (
        "suite/sums/accuracy/one",
        "suite/sums/unjudged",
        "suite/sums/turns",
        "suite/sums/pass_at_1",
    ):
        assert name in logged[2]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3], "also of the measured step"


def test_the_resolved_recipe_finds_the_suite_from_anywhere(run):
    schedule = load_recipe(run / "recipe.yaml").evaluation.suite
    assert schedule is not None
    assert Path(schedule.path) == run.parents[1] / "sums.yaml"
