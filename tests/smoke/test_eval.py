"""`sandbox-rl eval` and `compare` whole: real sandboxes, a local endpoint, a tiny model, kills, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from sandbox_rl.display import Silent
from sandbox_rl.errors import ConfigError, InfraFault
from sandbox_rl.evaluation.results import Results
from sandbox_rl.journal import read_journal
from sandbox_rl.policies.fake_endpoint import FakeEndpoint, Raw, said
from sandbox_rl.runs.evaluate import EvaluateOptions, evaluate
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer
from tests import prepared
from tests.processes import at_work
from tests.unit.evaluation.expert_endpoint import script as expert

TASKS, SAMPLES = 12, 4
SUITE = {
    "name": "small",
    "parts": [
        {
            "name": "facts",
            "samples": SAMPLES,
            "source": {"type": "table", "path": "rows.jsonl", "columns": {"id": "id"}},
        },
        {"name": "gone", "required": False, "source": {"type": "documents", "package": "no_such_package"}},
    ],
    "rollout": {"retries": 0, "backoff_s": 0.01, "concurrency": 8},
    "reward": {"workers": 1},
    "episode": {"max_turns": 3, "timeout_s": 300},
}
WRITE = ("execute_bash", {"command": "printf 42 > answer.txt"})


def answer(body, number):
    """Right in a sandbox, right without one for the even tasks."""
    if "tools" in body:
        return said("", [WRITE, ("submit", {})])
    question = body["messages"][-1]["content"]
    return said("Answer: 42" if "even" in question else "Answer: 41")


class Endpoint:
    """The shipped fake in a loop of its own; `script` may be replaced while it runs."""

    def __init__(self, script=answer):
        self.script = script
        self._fake = FakeEndpoint(lambda body, number: self.script(body, number))

    def __enter__(self):
        self._loop = LoopThread().__enter__()
        self._entered = self._loop.entered(self._fake)
        self._entered.__enter__()
        return self

    def __exit__(self, *exc):
        self._entered.__exit__(None, None, None)
        self._loop.__exit__(None, None, None)

    @property
    def url(self):
        return self._fake.base_url

    @property
    def requests(self):
        """What was asked, except the greeting."""
        return [r for r in self._fake.requests if r["messages"][-1]["content"] != "Say hello."]


@pytest.fixture
def endpoint():
    with Endpoint() as made:
        yield made


@pytest.fixture
def suite(tmp_path) -> Path:
    rows = [
        {"id": f"t{i}", "prompt": f"{'even' if i % 2 == 0 else 'odd'} {i}: 6*7?", "answer": "42"}
        for i in range(TASKS)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SUITE))
    return path


def options(suite, endpoint, **changes) -> EvaluateOptions:
    fields = {"model": "m", "base_url": endpoint.url, "output": suite.parent / "out", **changes}
    return EvaluateOptions(str(suite), **fields)


def command(suite, endpoint, *arguments) -> list[str]:
    return [
        *(sys.executable, "-m", "sandbox_rl.cli", "eval", str(suite), "--model", "m"),
        *("--base-url", endpoint.url, "--output", str(suite.parent / "out"), *arguments),
    ]


def sandbox_rl(command):
    return prepared.run(command, timeout=120, cwd=Path(__file__).parents[2])


def records(suite) -> list[dict]:
    return list(read_journal(suite.parent / "out" / "journal"))


def test_both_modes_and_what_is_left_behind(suite, endpoint):
    outcome = evaluate(options(suite, endpoint, mode="both"), display=Silent())
    results = outcome.results
    assert results.modes["sandbox"].accuracy.value == 1.0
    assert results.modes["plain"].accuracy.value == 0.5
    assert results.comparison.value == 0.5
    assert results.comparison.tasks == TASKS
    assert results.parts == {"facts": (TASKS, SAMPLES)}
    assert "no_such_package" in results.skipped["gone"]
    assert results.unjudged == 0
    out = suite.parent / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "evaluation.json",
        "journal",
        "lock",
        "results.json",
        "results.md",
    ]
    assert Results.from_json(json.loads((out / "results.json").read_text())) == results
    page = (out / "results.md").read_text()
    assert "+50.0 points" in page
    assert "left out: gone" in page


def test_a_kill_on_the_command_line_loses_and_repeats_nothing(suite, endpoint):
    """SIGKILL while replies are slow; the resumed command runs what is missing and no more."""
    endpoint.script = lambda body, number: said("", [WRITE, ("submit", {})], delay_s=0.25)
    process = prepared.Popen(
        command(suite, endpoint),
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    journal = suite.parent / "out" / "journal"
    deadline = time.monotonic() + 200
    while sum(path.read_bytes().count(b'"ended"') for path in journal.glob("*.jsonl")) < 10:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=90)
    survived = {record["episode_id"] for record in records(suite)}
    assert 10 <= len(survived) < TASKS * SAMPLES
    with max(journal.glob("*.jsonl")).open("ab") as file:
        file.write(b'{"torn": ')
    endpoint.script = answer
    asked = len(endpoint.requests)
    done = sandbox_rl(command(suite, endpoint, "--resume"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(endpoint.requests) - asked == TASKS * SAMPLES - len(survived)
    ids = [record["episode_id"] for record in records(suite)]
    assert len(ids) == len(set(ids)) == TASKS * SAMPLES
    results = json.loads((suite.parent / "out" / "results.json").read_text())
    assert results["modes"]["sandbox"]["accuracy"]["value"] == 1.0


def test_faults_end_with_3_and_resume_retries_them_alone(suite, endpoint):
    def half(body, number):
        return Raw(b"down", 400) if "odd" in body["messages"][-1]["content"] else answer(body, number)

    endpoint.script = half
    done = sandbox_rl(command(suite, endpoint, "--mode", "plain"))
    assert done.returncode == 3, done.stdout + done.stderr
    lost = TASKS * SAMPLES // 2
    assert f"{lost} episodes were not judged, {lost} of them" in " ".join(done.stdout.split())
    assert "--resume" in done.stdout
    endpoint.script = answer
    asked = len(endpoint.requests)
    outcome = evaluate(options(suite, endpoint, mode="plain", resume=True), display=Silent())
    assert len(endpoint.requests) - asked == lost
    assert outcome.results.unjudged == 0
    assert outcome.results.modes["plain"].accuracy.value == 0.5


def test_an_endpoint_that_dies_after_its_greeting(suite, endpoint):
    """Nothing judged is our failure; the journal stays, and a repaired endpoint goes on from it."""

    def greets(body, number):
        return said("Hello") if "Say hello." in body["messages"][-1]["content"] else Raw(b"", 400)

    endpoint.script = greets
    with pytest.raises(InfraFault, match=f"all {TASKS * SAMPLES} episodes failed on our side"):
        evaluate(options(suite, endpoint, mode="plain"), display=Silent())
    assert len(records(suite)) == TASKS * SAMPLES
    endpoint.script = answer
    outcome = evaluate(options(suite, endpoint, mode="plain", resume=True), display=Silent())
    assert (outcome.results.unjudged, outcome.fault) == (0, "")


def test_an_endpoint_that_dies_in_the_middle_leaves_the_numbers_so_far(suite, endpoint):
    endpoint.script = lambda body, number: answer(body, number) if number <= 1_000 else Raw(b"", 400)
    outcome = evaluate(options(suite, endpoint, mode="plain", samples=100), display=Silent())
    assert "all 200 episodes failed on our side" in outcome.fault
    assert (outcome.results.unjudged, outcome.results.faults) == (200, 200)
    assert outcome.results.modes["plain"].episodes == 1_000
    assert "200 episodes were not judged" in (suite.parent / "out" / "results.md").read_text()


def test_a_judge_that_is_down_leaves_rows_unjudged_until_it_is_back(suite, endpoint):
    down = "base_url: 'http://127.0.0.1:9/v1', model: j, retries: 0, requests_per_second: 1000"
    judge = ("reward.scorer=judge", f"reward.judge={{{down}}}")
    outcome = evaluate(options(suite, endpoint, mode="plain", overrides=judge), display=Silent())
    assert (outcome.results.unjudged, outcome.results.faults) == (TASKS * SAMPLES, 0)

    def verdict(body, number):
        marker = body["messages"][0]["content"].splitlines()[-1].split()[0]
        return said(f"Same.\n{marker} CORRECT")

    with Endpoint(verdict) as up:
        repaired = (judge[0], f"reward.judge={{base_url: '{up.url}', model: j, requests_per_second: 1000}}")
        again = options(suite, endpoint, mode="plain", overrides=repaired, resume=True)
        outcome = evaluate(again, display=Silent())
    assert outcome.results.unjudged == 0
    assert outcome.results.modes["plain"].accuracy.value == 1.0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "another"}, "model"),
        ({"mode": "both"}, "modes"),
        ({"samples": 2}, "samples of"),
        ({"overrides": ("seed=5",)}, "seed of"),
        ({"overrides": ("limit=3",)}, "tasks of"),
        ({"overrides": ("sampling.temperature=1",)}, "sampling of"),
        ({"overrides": ("episode.max_tokens=9",)}, "episode of"),
    ],
)
def test_resume_refuses_another_measurement(suite, endpoint, changes, named):
    evaluate(options(suite, endpoint, mode="plain"), display=Silent())
    before = sorted((suite.parent / "out" / "journal").iterdir())
    fields = {"mode": "plain", "resume": True, **changes}
    with pytest.raises(ConfigError, match=rf"^--resume: {named}.*the run has .*, now ") as caught:
        evaluate(options(suite, endpoint, **fields), display=Silent())
    assert "\n" not in str(caught.value)
    assert sorted((suite.parent / "out" / "journal").iterdir()) == before


def test_resume_refuses_other_prompts_and_other_rows(suite, endpoint):
    prompts = suite.parent / "prompts"
    prompts.mkdir()
    (prompts / "general.yaml").write_text("system: Work.\ninstance: '{problem_statement}'\n")
    fields = {"mode": "plain", "overrides": (f"prompts=[{prompts}]",)}
    evaluate(options(suite, endpoint, **fields), display=Silent())
    (prompts / "general.yaml").write_text("system: Work!\ninstance: '{problem_statement}'\n")
    with pytest.raises(ConfigError, match=r"^--resume: prompts of .*, general: "):
        evaluate(options(suite, endpoint, resume=True, **fields), display=Silent())
    (prompts / "general.yaml").write_text("system: Work.\ninstance: '{problem_statement}'\n")
    rows = suite.parent / "rows.jsonl"
    rows.write_text(rows.read_text().replace('"42"', '"43"', 1))
    with pytest.raises(ConfigError, match=r"^--resume: tasks of .*, facts.t0: "):
        evaluate(options(suite, endpoint, resume=True, **fields), display=Silent())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mode": "plane"}, "expected sandbox, plain or both"),
        ({"samples": 0}, "--samples: 0, expected at least 1"),
        ({"model": None}, "--base-url: given without --model"),
        ({"base_url": None, "model": None}, "--model: missing"),
        ({"base_url": "localhost:8000"}, "expected http://HOST:PORT/v1"),
        ({"base_url": None, "api_key_env": "KEY"}, "--api-key-env: given without --base-url"),
        ({"api_key_env": "NO_SUCH_VARIABLE_HERE"}, "'NO_SUCH_VARIABLE_HERE' is not set"),
        ({"overrides": ("parts=[]",)}, "parts"),
        ({"overrides": ("episode.max_turn=1",)}, "did you mean 'max_turns'?"),
        (
            {"overrides": ("parts.1.required=true",)},
            "part 'gone' of suite 'small': package 'no_such_package'",
        ),
        ({"overrides": ("parts.1.name=facts",)}, "two parts are named 'facts'"),
        ({"resume": True}, "expected the directory of an earlier evaluation"),
        ({"base_url": None, "model": "/no/such-model"}, "/no/such-model"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_leaves_nothing(suite, endpoint, changes, expected, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Exception) as caught:  # noqa: PT011
        evaluate(options(suite, endpoint, **changes), display=Silent())
    assert type(caught.value).__name__ in ("ConfigError", "DataError", "ModelError")
    assert expected in str(caught.value)
    assert not (suite.parent / "out").exists()
    assert endpoint.requests == []


def test_two_at_one_directory_are_refused(suite, endpoint):
    evaluate(options(suite, endpoint, mode="plain"), display=Silent())
    with at_work(suite.parent / "out") as pid:
        with pytest.raises(ConfigError, match=f"--output: process {pid} on .* is at work on"):
            evaluate(options(suite, endpoint, mode="plain", resume=True), display=Silent())
    evaluate(options(suite, endpoint, mode="plain", resume=True), display=Silent())


def test_an_existing_output_is_refused_with_2(suite, endpoint):
    (suite.parent / "out").mkdir()
    done = sandbox_rl(command(suite, endpoint))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "go on with it by --resume" in done.stderr


@pytest.mark.parametrize(
    ("reply", "error", "expected"),
    [
        (Raw(b"who are you", 401), ConfigError, "the key is not accepted"),
        (Raw(b"model not found", 404), ConfigError, "HTTP 404"),
        (Raw(b"no", 400), InfraFault, "HTTP 400"),
    ],
)
def test_an_endpoint_that_cannot_serve_shows_at_once(suite, endpoint, reply, error, expected):
    endpoint.script = lambda body, number: reply
    with pytest.raises(error, match=expected):
        evaluate(options(suite, endpoint), display=Silent())
    assert not (suite.parent / "out").exists()
    assert endpoint.requests == []


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(path)
    tiny_model(tokenizer).save_pretrained(path)
    return path


def test_a_local_model_in_both_modes(suite, tiny):
    """Random weights answer nothing; what counts is that every episode is run, judged and counted."""
    budgets = ("episode.max_tokens=400", "episode.turn_tokens=8", "limit=3")
    asked = EvaluateOptions(
        str(suite), budgets, model=str(tiny), mode="both", samples=1, output=suite.parent / "out"
    )
    outcome = evaluate(asked, display=Silent())
    assert outcome.results.unjudged == 0
    assert {mode.episodes for mode in outcome.results.modes.values()} == {3}
    assert outcome.results.modes["plain"].means["turns"] == 1.0
    assert outcome.results.modes["plain"].means["calls"] == 0.0
    plain = [record for record in records(suite) if record["mode"] == "plain"]
    assert all(record["turns"][0]["token_ids"] for record in plain)
    written = (tiny / "config.json").read_bytes()
    try:
        (tiny / "config.json").write_bytes(written + b"\n")
        with pytest.raises(ConfigError, match=r"^--resume: model of .*, files: "):
            evaluate(
                EvaluateOptions(
                    str(suite),
                    budgets,
                    str(tiny),
                    mode="both",
                    samples=1,
                    output=suite.parent / "out",
                    resume=True,
                ),
                display=Silent(),
            )
    finally:
        (tiny / "config.json").write_bytes(written)


def test_the_offline_suite_can_be_solved_by_working_on_its_files(endpoint, tmp_path):
    endpoint.script = expert
    asked = EvaluateOptions(
        "offline", ("limit=3",), model="expert", base_url=endpoint.url, output=tmp_path / "out"
    )
    outcome = evaluate(asked, display=Silent())
    parts = outcome.results.modes["sandbox"].parts
    assert outcome.results.unjudged == 0
    assert parts["python_reference"].accuracy.value == 1.0
    assert parts["chain_sum"].accuracy.value == 1.0
    assert parts["syllogism"].accuracy.value == 0.0
    assert {"champ", "mmlu_cot"} <= outcome.results.skipped.keys() | parts.keys()


def test_a_recipe_s_held_out_tasks(tmp_path, endpoint):
    source = {"type": "reasoning_gym", "dataset": "chain_sum", "size": 40, "domain": "general"}
    recipe = {"name": "r", "data": {"sources": [source], "held_out": 0.5}, "evaluation": {"tasks": 6}}
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe))
    outcome = evaluate(options(path, endpoint, mode="plain", samples=2), display=Silent())
    assert outcome.results.parts == {"general": (6, 2)}
    assert outcome.results.modes["plain"].episodes == 12


def test_comparing_runs(suite, endpoint):
    first = evaluate(options(suite, endpoint, mode="plain"), display=Silent())
    endpoint.script = lambda body, number: said("Answer: 42")
    second = evaluate(
        options(suite, endpoint, mode="plain", model="better", output=suite.parent / "second"),
        display=Silent(),
    )
    page = suite.parent / "page.md"
    runs = [str(outcome.output) for outcome in (first, second)]
    compare = [sys.executable, "-m", "sandbox_rl.cli", "compare"]
    done = sandbox_rl([*compare, *runs, "--output", str(page)])
    assert done.returncode == 0, done.stderr
    assert page.read_text() == done.stdout
    assert "| small, better | plain | +50.0 points" in done.stdout
    assert f"| {TASKS} |" in done.stdout
    assert sandbox_rl([*compare, runs[0]]).returncode == 2
    (second.output / "results.json").write_text("{}")
    broken = sandbox_rl([*compare, *runs])
    assert (broken.returncode, len(broken.stderr.splitlines())) == (2, 1)
    assert "evaluate again" in broken.stderr


def test_ctrl_c_says_how_to_go_on(suite, endpoint):
    endpoint.script = lambda body, number: said("", [WRITE], delay_s=0.2)
    process = prepared.Popen(
        command(suite, endpoint),
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    watchdog = threading.Timer(200, process.kill)
    watchdog.start()
    try:
        journal = suite.parent / "out" / "journal"
        while process.poll() is None and not any(path.stat().st_size for path in journal.glob("*.jsonl")):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate()
    finally:
        watchdog.cancel()
        process.kill()
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "--resume" in stderr.splitlines()[-1]
