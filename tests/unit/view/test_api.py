"""What the page is told: the answers to its questions, of runs in every state."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sandbox_rl.errors import DataError
from sandbox_rl.journal import Journal
from sandbox_rl.journal.trained import TrainedRow, TrainedTokens
from sandbox_rl.ledger import SampleEnd
from sandbox_rl.view.api import answer, to_json
from sandbox_rl.view.learning import findings, headline
from sandbox_rl.view.opened import OpenRun, open_run
from sandbox_rl.view.suspicion import look
from sandbox_rl.view.terminal import token_lines
from tests.unit.view.run_on_disk import GROUP, bash, make_run, rollout, write_episode


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def made(tmp_path):
    with open_run(make_run(tmp_path / "run"), whole=True) as run:
        yield run


def ask(run: OpenRun, question: str, **query: object):
    return json.loads(to_json(answer([run], question, {k: str(v) for k, v in query.items()})))


def files_of(directory: Path) -> dict[str, tuple[int, float]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime) for p in directory.rglob("*") if p.is_file()}


def test_the_first_screen_says_whether_it_learns(made):
    found = ask(made, "overview")
    assert found["state"] == "finished"
    assert found["headline"]["level"] == "good"
    assert found["curves"]["step"] == [1, 2, 3, 4, 5, 6]
    assert found["now"]["episodes"] == 6 * GROUP + 1
    assert "curves" not in ask(made, "overview", have=found["version"])


def test_looking_leaves_the_run_as_it_was(tmp_path):
    directory = make_run(tmp_path / "run")
    before = files_of(directory)
    with open_run(directory, whole=True) as run:
        for question in ("overview", "episodes", "choices", "suspicions", "recipe"):
            ask(run, question)
    assert files_of(directory) == before


def test_a_run_that_goes_on_is_followed(tmp_path):
    directory = make_run(tmp_path / "run", finished=False)
    with open_run(directory, whole=True) as run, Journal(directory / "journal") as journal:
        assert run.state == "running"
        done = rollout("train-000200-0000", bash(("ls", "x")), "1", 1.0)
        journal.started("train-000200-0000", done.task, (1, 2), phase="train", step=9)
        run.refresh()
        assert [row["id"] for row in ask(run, "overview")["now"]["live"]] == ["train-000200-0000"]
        journal.turn("train-000200-0000", done.trajectory.turns[0])
        with (directory / "metrics.jsonl").open("a") as file:
            file.write('{"step": 7, "loss": 1.0, "reward/mean": 1.0}\n{"step": 8, "lo')  # the second is torn
        run.refresh()
        assert ask(run, "episode", id="train-000200-0000")["turns_total"] == 1
        assert ask(run, "overview")["progress"]["done"] == 7


def test_what_a_killed_start_was_at_is_not_in_flight(tmp_path):
    def killed(journal):
        for sample in range(3):
            id = f"train-000200-000{sample}"
            journal.started(id, rollout(id, (), "", 1.0).task, (1, 2), phase="train", step=9)

    directory = make_run(tmp_path / "run", finished=False, change=killed)
    with Journal(directory / "journal") as journal:
        journal.replaced([f"train-000200-000{sample}" for sample in range(3)])
        again = rollout("train-000200-0000-r1", (), "", 1.0)
        journal.started("train-000200-0000-r1", again.task, (1, 2), phase="train", step=9)
        with open_run(directory, whole=True) as run:
            now = ask(run, "overview")["now"]
    assert now["in_flight"] == len(now["live"]) == 1
    assert now["episodes"] == 6 * GROUP + 1


def test_a_resumed_run_rewrites_its_metrics(tmp_path, made):
    path = made.path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    other = path.with_name("other")
    other.write_text("".join(lines[:2]) + lines[2].replace('"loss": 0.1', '"loss": 7.5') + "".join(lines[3:]))
    os.replace(other, path)
    made.refresh()
    assert ask(made, "overview")["curves"]["loss"][2] == 7.5


def test_lists_are_filtered_sorted_and_paged(made):
    solved = ask(made, "episodes", reward_min=1)
    assert solved["total"] == len(solved["rows"]) > 0
    assert {row["reward"] for row in solved["rows"]} == {1.0}
    assert [r["id"] for r in ask(made, "episodes", text="train-000003-0001")["rows"]] == ["train-000003-0001"]
    assert ask(made, "episodes", text="100%")["total"] == 0
    assert ask(made, "episodes", step=2)["total"] == GROUP
    assert (
        ask(made, "episodes", end="used")["total"] + ask(made, "episodes", end="equal_rewards")["total"] == 24
    )
    by_reward = [
        r["reward"] for r in ask(made, "episodes", sort="reward", desc=1)["rows"] if r["reward"] is not None
    ]
    assert by_reward == sorted(by_reward, reverse=True)
    everything = [row["id"] for row in ask(made, "episodes")["rows"]]
    assert [row["id"] for row in ask(made, "episodes", offset=20)["rows"]] == everything[20:]


def test_own_sql_reads_and_nothing_else(made):
    assert ask(made, "episodes", sql="turns = 2 AND reward IS NOT NULL")["total"] == 24
    for harm in (
        "1); DELETE FROM episodes; --",
        "id IN (SELECT load_extension('x'))",
        "nonsense =",
        "(SELECT 1 FROM pragma_database_list)",
        "0 UNION SELECT 1",
    ):
        with pytest.raises(DataError, match="sql"):
            ask(made, "episodes", sql=harm)
    endless = "(WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c)"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sandbox_rl.view.listing.SQL_SECONDS", 0.2)
        with pytest.raises(DataError, match="interrupted"):
            ask(made, "episodes", sql=endless)
    assert ask(made, "episodes")["total"] == 25


def test_an_episode_is_shown_turn_by_turn(made):
    found = ask(made, "episode", id="train-000003-0001")
    assert [turn["calls"][0]["kind"] for turn in found["turns"]] == ["bash", "call"]
    assert found["turns"][0]["calls"][0]["text"] == "python3 -c 'print(301)'"
    assert found["turns"][0]["observations"][0]["text"] == "301\n"
    assert found["answer"]["text"] == "301"
    assert len(found["siblings"]) == GROUP
    with pytest.raises(DataError, match="no episode 'nobody'"):
        ask(made, "episode", id="nobody")


def test_long_texts_and_long_episodes_come_in_pieces(tmp_path):
    long = "line\n" * 40_000

    def change(journal: Journal) -> None:
        write_episode(journal, rollout("train-000300-0000", bash(*[("cat x", long)] * 90), "1", 1.0))

    with open_run(make_run(tmp_path / "run", change=change), whole=True) as run:
        body = to_json(answer([run], "episode", {"id": "train-000300-0000"}))
        assert len(body) < 1_000_000
        found = json.loads(body)
        assert (found["turns_total"], len(found["turns"])) == (91, 40)
        assert found["turns"][0]["observations"][0]["chars"] == len(long)
        later = ask(run, "episode", id="train-000300-0000", offset=80)["turns"]
        assert [turn["index"] for turn in later] == list(range(80, 91))
        text = ask(run, "text", id="train-000300-0000", what="observation", turn=85, number=0)
        assert text["text"] == long


def test_tokens_have_everything_that_is_known(made):
    found = ask(made, "tokens", id="train-000003-0001")
    assert found["ids"] == [1, 9, 0, 3, 4, 5, 2, 0, 6, 7, 8, 2]
    assert found["origin"] == [0] * 3 + [1] * 4 + [2] * 3 + [1] * 2
    assert found["logprob"][3:7] == [-0.5, -0.25, -1.0, -0.01]
    assert found["logprob"][7] is None
    assert found["words"]["3"] == "think"
    assert found["control"] == [0, 1, 2]
    assert found["version"][3] == 1
    assert not found["recorded"]
    assert set(found["trainer"]) == set(found["share"]) == {None}


def trained_row(episode: str, *gradients: float, first: int = 0) -> TrainedRow:
    log_probs = np.arange(first + 1, first + 1 + len(gradients)) / -8
    return TrainedRow(episode, first, log_probs.astype(np.float32), np.array(gradients, np.float32))


def test_tokens_show_what_the_trainer_made_of_them(tmp_path):
    """Parts of an episode from two processes; what a resumed run did again replaces what it did before."""
    directory, id = make_run(tmp_path / "run"), "train-000003-0001"
    old = TrainedTokens(directory / "trained", start=0, process=0)
    old.write(3, [trained_row("train-000002-0000", 1.0, 1.0)])
    old.write(4, [trained_row(id, *[9.0] * 6)])
    rows = [trained_row("train-000003-0000", 1.0, 1.0), trained_row(id, -0.5, 0.25)]
    TrainedTokens(directory / "trained", start=1, process=0).write(4, rows)
    rows = [trained_row(id, 0.25, 0.0, 0.0, 1.0, first=2)]
    TrainedTokens(directory / "trained", start=1, process=1).write(4, rows)
    with open_run(directory, whole=True) as run:
        found = ask(run, "tokens", id=id)
        lines = list(token_lines(run, id))
        other = ask(run, "tokens", id="train-000004-0001")
    assert found["trainer"] == [*[None] * 3, -0.125, -0.25, -0.375, -0.5, *[None] * 3, -0.625, -0.75]
    assert found["share"][3:7] == pytest.approx([0.125, 0.0625, 0.0625, 0.0], rel=1e-3)
    assert found["share"][10:] == pytest.approx([0.0, 0.25], rel=1e-3)
    assert found["weight"] == pytest.approx(0.5, rel=1e-3)
    assert lines[4].split()[3:7] == ["-0.5000", "-0.1250", "+3.8e-01", "12.500%"]
    assert (found["recorded"], other["recorded"]) == (True, False)


def test_what_is_cut_of_the_trainer_s_values_is_one_line(tmp_path):
    directory = make_run(tmp_path / "run")
    TrainedTokens(directory / "trained", start=0, process=0).write(4, [trained_row("train-000003-0001", 1.0)])
    (values,) = (directory / "trained").glob("*.values")
    values.write_bytes(values.read_bytes()[:-1])
    with open_run(directory, whole=True) as run, pytest.raises(DataError, match="cut or changed"):
        ask(run, "tokens", id="train-000003-0001")


def test_tokens_of_a_long_episode_come_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("sandbox_rl.view.tokens.TOKENS", 50)
    monkeypatch.setattr("sandbox_rl.view.tokens.EVENTS", 7)

    def change(journal: Journal) -> None:
        hostile = '{"columns": {"lengths": [9, 9]}}'
        write_episode(journal, rollout("train-000300-0000", bash(*[(hostile, "x")] * 90), "1", 1.0))

    directory = make_run(tmp_path / "run", change=change)
    about = {"number": 300, "task": "task", "refill": None}
    sample = {"episode": "train-000300-0000", "end": "used", "advantage": 1.0}
    with (directory / "ledger.jsonl").open("a") as ledger:
        ledger.write(json.dumps({"update": 7, "time": 1.0, "groups": [about | {"samples": [sample]}]}) + "\n")
    row = trained_row("train-000300-0000", *[1.0] * 362)
    TrainedTokens(directory / "trained", start=0, process=0).write(7, [row])
    with open_run(directory, whole=True) as run:
        pieces = [ask(run, "tokens", id="train-000300-0000", offset=at) for at in range(0, 635, 50)]
    assert {piece["total"] for piece in pieces} == {3 + 90 * 7 + 2}
    ids, turns, trainer = (
        [v for piece in pieces for v in piece[name]] for name in ("ids", "turn", "trainer")
    )
    assert ids == [1, 9, 0, *[3, 4, 5, 2, 0, 6, 7] * 90, 8, 2]
    assert turns == [-1] * 3 + [turn for turn in range(90) for _ in range(7)] + [90] * 2
    assert [v for v in trainer if v is not None] == [(n + 1) / -8 for n in range(362)]


@pytest.mark.parametrize("end", SampleEnd)
def test_every_class_of_the_ledger_is_a_sentence(tmp_path, end):
    directory = make_run(tmp_path / "run")
    lines = (directory / "ledger.jsonl").read_text()
    (directory / "ledger.jsonl").write_text(lines.replace('"used"', f'"{end.value}"'))
    with open_run(directory, whole=True) as run:
        (row, *_) = ask(run, "episodes", end=end.value)["rows"]
        assert end.why in ask(run, "episode", id=row["id"])["why"]["sentence"]


def test_without_a_ledger_it_says_so(tmp_path):
    with open_run(make_run(tmp_path / "run", ledger=False), whole=True) as run:
        why = ask(run, "episode", id="train-000000-0000")["why"]
    assert why == {"end": None, "sentence": "Not recorded: this run has no ledger.", "advantage": None}


def test_groups_tasks_and_runs_beside_each_other(tmp_path, made):
    group = ask(made, "group", id="train-000002-0003")
    assert [m["episode"]["id"] for m in group["members"]] == [f"train-000002-{n:04d}" for n in range(GROUP)]
    assert [m["differs_at"] for m in group["members"]] == [2, 0, 0, 0]
    assert len(ask(made, "task", task_id="task-2")["attempts"]) == GROUP
    shutil.copytree(made.path, tmp_path / "other")
    with open_run(tmp_path / "other", whole=True) as other:
        found = json.loads(to_json(answer([made, other], "compare", {"run": "0", "other": "1"})))
    assert found["difference"]["value"] == 0
    assert found["shared"] == 6


def test_a_timeline_accounts_for_its_seconds(made):
    found = ask(made, "timeline", step=2)
    assert len(found["episodes"]) == GROUP
    for episode in found["episodes"]:
        bars = episode["bars"]
        assert all(a <= b for _, a, b in bars)
        assert all(earlier[2] <= later[1] + 1e-3 for earlier, later in pairwise(bars))
    assert sum(found["idle"].values()) <= found["seconds"] + 1e-6


def steps(*rewards: float, **more: float) -> list[dict[str, float]]:
    return [{"step": n + 1, "loss": 0.0, "reward/mean": r, **more} for n, r in enumerate(rewards)]


@pytest.mark.parametrize(
    ("rewards", "level"),
    [
        ([0.1, 0.2, 0.1, 0.5, 0.8, 0.9, 0.8, 0.9], "good"),
        ([0.9, 0.8, 0.9, 0.5, 0.2, 0.1, 0.2, 0.1], "bad"),
        ([0.5, 0.4, 0.6, 0.5, 0.4, 0.6, 0.5, 0.5], "warn"),
        ([0.5, 0.9], "note"),
    ],
)
def test_a_trend_is_told_from_noise(rewards, level):
    assert headline(steps(*rewards)).level == level


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"zero_variance_groups": 0.9}, "equal rewards"),
        ({"infra_fault_rate": 0.2}, "faults of ours"),
        ({"stop/max_tokens": 0.6}, "run out of tokens"),
        ({"failures/no_call": 1.5}, "without a tool call"),
        ({"update/changed": 0.0}, "weights do not change"),
        ({"mismatch/kl": 0.3}, "disagree"),
        ({"samples/trained": 0.2}, "trained on"),
        ({"clip_ratio/region_mean": 0.5}, "clipped"),
    ],
)
def test_what_stands_in_its_way_is_named(metrics, said):
    (found,) = findings(steps(*[0.5] * 8, **metrics), [])
    assert said in found.text


def test_nothing_is_named_where_nothing_stands_in_its_way():
    healthy = {
        "zero_variance_groups": 0.1,
        "update/changed": 1.0,
        "samples/trained": 0.9,
        "stop/max_tokens": 0.05,
    }
    assert findings(steps(*[0.5] * 8, **healthy), []) == []


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "newer", "newer ledger"])
def test_what_is_no_run_is_one_line(tmp_path, kind):
    path = tmp_path / "it"
    if kind == "file":
        path.write_text("x")
    elif kind != "missing":
        path.mkdir()
    if kind == "newer":
        make_run(tmp_path / "made")
        path = tmp_path / "made"
        (path / "results.json").write_text('{"before": {"format": 99}}')
    if kind == "newer ledger":
        path = make_run(tmp_path / "newer")
        (path / "ledger.jsonl").write_text('{"ledger": 99}\n')
    with pytest.raises(DataError) as raised, open_run(path):
        pass
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_torn_journal_is_read_as_far_as_it_goes(tmp_path):
    directory = make_run(tmp_path / "run")
    (path,) = (directory / "journal").glob("*.jsonl")
    content = path.read_bytes()
    for cut in (0, 1, 500, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with open_run(directory, whole=True) as run:
            for row in ask(run, "episodes")["rows"]:
                ask(run, "episode", id=row["id"])
                ask(run, "tokens", id=row["id"])


def test_broken_tokens_are_one_line(tmp_path):
    directory = make_run(tmp_path / "run")
    (path,) = (directory / "journal").glob("*.tokens")
    path.write_bytes(path.read_bytes()[:50])
    with open_run(directory, whole=True) as run, pytest.raises(DataError, match="cannot be read"):
        ask(run, "episode", id="train-000003-0001")


def test_a_ledger_is_read_on_and_anew_where_another_takes_its_place(tmp_path):
    directory = make_run(tmp_path / "run")
    path = directory / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:40])
    with open_run(directory, whole=True) as run:
        ends = "SELECT count(*) AS n FROM samples"
        assert run.select(ends)[0]["n"] == 2 * GROUP
        with path.open("r+") as file:
            file.writelines(lines)
        run.refresh()
        assert run.select(ends)[0]["n"] == 6 * GROUP
        path.with_name("other").write_text("".join(lines[:2]))
        os.replace(path.with_name("other"), path)
        run.refresh()
        assert run.select(ends)[0]["n"] == GROUP
    with open_run(directory) as run:
        assert run.select(ends)[0]["n"] == GROUP


def test_another_run_in_the_place_of_one_that_was_looked_at_has_nothing_of_it(tmp_path):
    with open_run(make_run(tmp_path / "run"), whole=True) as run:
        while look(run, 10):
            pass
        assert run.select("SELECT count(*) AS n FROM looked")[0]["n"]
    shutil.rmtree(tmp_path / "run")
    time.sleep(0.01)
    with open_run(make_run(tmp_path / "run", groups=2, ledger=False), whole=True) as run:
        assert run.select("SELECT count(*) AS n FROM looked")[0]["n"] == 0
        assert run.select("SELECT count(*) AS n FROM samples")[0]["n"] == 0
        assert ask(run, "episodes")["total"] == 2 * GROUP + 1


def test_numbers_that_are_none_are_gaps_and_words_stay_words(made):
    with (made.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": NaN, "grad_norm": Infinity, "reward/mean": 1.0, "note": "NaN"}\n')
    with (made.path / "alarms.jsonl").open("a") as file:
        file.write('{"step": 7, "name": "not_finite", "detail": "loss is NaN"}\n')
    made.refresh()
    found = ask(made, "overview")
    assert (found["curves"]["loss"][-1], found["curves"]["reward/mean"][-1]) == (None, 1.0)
    assert any("loss is NaN" in finding["text"] for finding in found["findings"])


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "alarms.jsonl", "history.jsonl", "results.json", "recipe.yaml"]
)
def test_files_of_odd_content_keep_the_first_screen_up(tmp_path, name):
    odd = [
        *(
            '{"loss": 1}',
            '{"step": "x", "loss": 1}',
            '{"step": 9, "loss": null, "reward/mean": "high"}',
            "[]",
            "{",
        ),
        *(
            '{"step": 9, "eval/accuracy": null}',
            '{"step": 9, "event": 5}',
            "null",
            "\\x00",
            '{"modes": {"a": 1}}',
        ),
    ]
    for number, text in enumerate(odd):
        directory = make_run(tmp_path / str(number))
        whole = name.endswith(".jsonl")
        with (directory / name).open("a" if whole else "w") as file:
            file.write(text + "\n")
        with open_run(directory, whole=True) as run:
            assert ask(run, "overview")["headline"]["level"] == "good"


def test_a_run_whose_process_is_gone_is_not_taken_for_running(tmp_path):
    """By the lock that goes with its process, at once; what it said it was doing is not shown any more."""
    directory = make_run(tmp_path / "run", finished=False)
    (directory / "lock").touch()
    (directory / "status.json").write_text('{"doing": "update", "step": 3}')
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print(1, flush=True); input()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, directory / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with open_run(directory, whole=True) as run, owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        os.utime(directory / "metrics.jsonl", (1, 1))  # a long update
        found = ask(run, "overview")
        assert (found["state"], found["now"]["status"]["doing"]) == ("running", "update")
        owner.kill()
        owner.wait()
        found = ask(run, "overview")
        assert (found["state"], found["now"]["status"]) == ("ended", {})


def test_gold_answers_that_are_not_available_are_reported_missing(tmp_path):
    directory = make_run(tmp_path / "run")
    (directory / "recipe.yaml").write_text("name: made\nmodel: {path: tiny}\n")
    with open_run(directory, whole=True) as run:
        run.golds.start()
        deadline = time.monotonic() + 60
        while not run.golds.done and time.monotonic() < deadline:
            time.sleep(0.05)
        said = ask(run, "episode", id="train-000003-0001")["gold_failure"]
        assert "key 'data' is missing" in said
        assert ask(run, "overview")["now"]["golds"] == said
