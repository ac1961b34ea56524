"""The same answers give the same number wherever it is said: eval, training, card, comparison, demo."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from sandbox_rl.display import Silent
from sandbox_rl.evaluation.directory import EvaluationDirectory
from sandbox_rl.evaluation.page import compare, show_results
from sandbox_rl.evaluation.plan import EvaluationPlan, parts_by_domain
from sandbox_rl.evaluation.results import Results, results_of
from sandbox_rl.evaluation.run import EpisodeRow
from sandbox_rl.evaluation.statistics import Mean
from sandbox_rl.policies.base import Sampling
from sandbox_rl.policies.scripted import ScriptedPolicy
from sandbox_rl.runs.directory import RunDirectory
from sandbox_rl.runs.history import card_lines, known_results, write_results
from sandbox_rl.runs.report import show_training
from sandbox_rl.runs.train import TrainResult
from sandbox_rl.training.callbacks import LogMetrics, for_trackers
from sandbox_rl.types import Task
from tests.unit.evaluation.scripted_run import DONE, RIGHT, WRONG, measured
from tests.unit.rig import make_engine
from tests.unit.test_gpu_scripts import load


class Paper(Silent):
    """Keeps what is shown."""

    def __init__(self) -> None:
        self.text = ""

    def say(self, text):
        self.text += f"{text}\n"

    def table(self, title, columns, rows):
        self.text += "\n".join([title, *map(str, rows)]) + "\n"


def plan(label="") -> EvaluationPlan:
    tasks = [Task(f"t{i}", "What is 6*7?", "42", domain="sums") for i in range(30)]
    return EvaluationPlan("r", "m", parts_by_domain(tasks, 1), ("sandbox",), 0, Sampling(), label=label)


async def answers(right: int, path: Path, label: str = "") -> tuple[Results, list[EpisodeRow]]:
    """The results as they are read from the journal, and the rows as training gathers them."""

    def script(episode_id, turn, ids):
        return DONE if turn else (RIGHT if int(episode_id.rsplit("-", 2)[1]) < right else WRONG)

    rows: list[EpisodeRow] = []
    engine = make_engine(ScriptedPolicy(script))
    return await measured(plan(label), engine, path, lambda row, _: rows.append(row)), rows


def said_by_the_demo(run: Path, results: Results) -> str:
    demo = load("gpu_demo")
    logs = {f"eval/{name}": value for name, value in results.metrics().items()}
    state = SimpleNamespace(is_world_process_zero=True, global_step=0)
    LogMetrics(run / "metrics.jsonl").on_log(None, state, None, for_trackers(logs))
    return demo.said(demo.summary(run)["before"])


@pytest.mark.parametrize(
    ("right", "said"),
    [(30, "100.0 % [88.6, 100.0]"), (21, "70.0 % [52.1, 83.3]"), (0, "0.0 % [0.0, 11.4]")],
)
async def test_thirty_answers_are_one_number_everywhere(tmp_path, right, said):
    output = EvaluationDirectory(tmp_path / "eval")
    results, _ = await answers(right, output.journal)
    output.write(results)
    shown, trained, run = Paper(), Paper(), RunDirectory(tmp_path / "run")
    run.path.mkdir()
    show_results(results, shown)
    write_results(run, {"before": results, "after": None})
    before = known_results(run)["before"]
    assert before == results
    show_training(
        TrainResult(run.path, None, before, None, 4, interrupted=False), trained, recipe="r.yaml", go_on=""
    )
    accuracy = json.loads((output.path / "results.json").read_text())["modes"]["sandbox"]["accuracy"]
    places = {
        "the table of eval": shown.text,
        "the table of training": trained.text,
        "the model card": card_lines({"before": before})["held-out accuracy before training"],
        "the page": (output.path / "results.md").read_text(),
        "the comparison": compare([output.path, output.path]),
        "results.json": str(Mean(**accuracy)),
        "metrics.jsonl and the demo": said_by_the_demo(run.path, results),
    }
    assert {place: said in text for place, text in places.items()} == dict.fromkeys(places, True)


async def test_held_out_tasks_are_measured_as_a_suite_of_their_domains(tmp_path):
    """What training gathers from its processes, under ids of its own, is what the journal says."""
    alone, rows = await answers(21, tmp_path / "a.jsonl")
    within, gathered = await answers(21, tmp_path / "b.jsonl", label="eval-000010")
    assert {row.episode_id[:12] for row in gathered} == {"eval-000010-"}
    assert results_of(rows, plan()) == alone
    assert results_of(gathered[::2] + gathered[1::2], plan("eval-000010")) == within
    assert (alone.modes["sandbox"].accuracy, alone.keys) == (within.modes["sandbox"].accuracy, within.keys)


def test_what_was_not_measured_has_no_number():
    nothing = results_of([], plan())
    assert nothing.headline() == "not measured: 0 tasks judged, 30 not judged"
    assert "accuracy" not in nothing.metrics()
    assert (nothing.metrics()["tasks"], nothing.metrics()["unjudged_tasks"]) == (0, 30)
