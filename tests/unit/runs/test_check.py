"""`sandbox-rl check`: runs of every kind hold, and each kind of damage to their files is named."""

from __future__ import annotations

import json
import random
import re
import shutil
from functools import partial
from pathlib import Path

import pytest

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.errors import UserError
from sandbox_rl.journal import Journal
from sandbox_rl.journal.columns import with_checksum
from sandbox_rl.ledger import SampleEnd
from sandbox_rl.runs.check import check_run
from sandbox_rl.training.groups import group_requests
from sandbox_rl.types import Task
from tests.played_runs import SEED, SIZE, TASKS, async_run, played, sync_run
from tests.processes import at_work

ONCE = [{}]
KILLED = [{"save_at": (2,), "lost_in": 5}, {"save_at": (4, 6), "lost_in": 6}, {}]
KINDS = {
    "sync": sync_run,
    "two generations an update": partial(sync_run, rhythm=(2, 4)),
    "two updates a generation": partial(sync_run, rhythm=(2, 1)),
    "refill": partial(sync_run, curriculum={"refill_rounds": 2}),
    "curriculum": partial(
        sync_run,
        curriculum={"sampling": "difficulty", "domain_weights": {"a": 1, "b": 2}, "refill_rounds": 1},
    ),
    "over-sampled": partial(sync_run, over_sample=0.5),
    "async": async_run,
    "async that leaves out": partial(async_run, refill=1),
}


def play(kind, directory: Path, starts) -> Path:
    run = directory
    for number, start in enumerate(starts):
        run = KINDS[kind](directory, 8, resume=number > 0, **start)
    return run


@pytest.mark.parametrize("starts", [ONCE, KILLED], ids=["uninterrupted", "killed twice"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_holds(kind, starts, tmp_path):
    run = play(kind, tmp_path, starts)
    before = contents(run)
    found = check_run(run)
    assert found.violation is None, found
    assert (found.updates, "used" in found.ends) == (8, True)
    assert "each sample once and as scheduled" in str(found)
    assert contents(run) == before, "nothing is written"


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


# --- damage ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    found = {kind: play(kind, tmp_path_factory.mktemp("runs"), ONCE) for kind in KINDS}
    saved = [{"save_at": (4, 8)}]
    return found | {f"{kind}, saved": play(kind, tmp_path_factory.mktemp("runs"), saved) for kind in KINDS}


class Ledger:
    """The lines of a ledger, to be changed: a list of updates."""

    def __init__(self, run: Path) -> None:
        self._path = run / "ledger.jsonl"
        self._head, *lines = self._path.read_text().splitlines()
        self.updates = [json.loads(line) for line in lines]

    def save(self) -> None:
        self._path.write_text("\n".join([self._head, *map(json.dumps, self.updates)]) + "\n")

    def group(self, *ends: str, update: int = 3):
        """The first group from an update on that has all these ends; and the place of its update."""
        for place, one in enumerate(self.updates[update:], update):
            for group in one["groups"]:
                if set(ends) <= {sample["end"] for sample in group["samples"]}:
                    return group, place
        raise AssertionError(f"no group with {ends}")

    def sample(self, end: str):
        return next(sample for sample in self.group(end)[0]["samples"] if sample["end"] == end)


def lose_an_update(ledger):
    del ledger.updates[3]


def repeat_an_update(ledger):
    ledger.updates.insert(4, ledger.updates[3])


def lose_a_group(ledger):
    group, place = ledger.group("used")
    ledger.updates[place]["groups"].remove(group)


def use_a_group_twice(ledger):
    group, place = ledger.group("used")
    ledger.updates[place + 1]["groups"].append(group)


def lose_a_sample(ledger):
    del ledger.group("used")[0]["samples"][1]


def use_a_sample_for_another(ledger):
    samples = ledger.group("used")[0]["samples"]
    samples[1] = samples[0]


def swap_samples(ledger):
    samples = ledger.group("used")[0]["samples"]
    samples[0], samples[1] = samples[1], samples[0]


def another_task(ledger):
    group, _ = ledger.group("used")
    group["task"] = "t0" if group["task"] != "t0" else "t1"


def unknown_task(ledger):
    ledger.group("used")[0]["task"] = "elsewhere"


def another_number(ledger):
    ledger.group("used")[0]["number"] += 100


def negative_number(ledger):
    ledger.group("used")[0]["number"] = -1


def another_advantage(ledger):
    ledger.sample("used")["advantage"] += 0.01


def another_sign(ledger):
    sample = ledger.sample("used")
    sample["advantage"] = -sample["advantage"]


def no_advantage(ledger):
    ledger.sample("used")["advantage"] = None


def a_fault_as_a_reward(ledger):
    sample = ledger.sample("not_judged")
    sample["end"], sample["advantage"] = "used", -0.5


def a_used_one_as_a_fault(ledger):
    ledger.sample("used").update(end="not_judged", advantage=None)


def equal_as_used(ledger):
    ledger.sample("equal_rewards")["end"] = "used"


def stale(ledger):
    ledger.sample("used")["end"] = "stale"


def refilled_in_part(ledger):
    ledger.sample("used")["end"] = "refilled"


def cut_in_part(ledger):
    ledger.sample("used")["end"] = "cut"


def left_out_in_part(ledger):
    ledger.sample("used")["end"] = "not_finite"


def lose_a_refilled_group(ledger):
    group, place = ledger.group("refilled")
    ledger.updates[place]["groups"].remove(group)


def move_a_refilled_group(ledger):
    group, place = ledger.group("refilled")
    ledger.updates[place]["groups"].remove(group)
    ledger.updates[place + 1]["groups"].append(group)


def refill_with_another_round(ledger):
    group = next(g for u in ledger.updates for g in u["groups"] if g["refill"] is not None)
    group["refill"] = 7


def lose_a_cut_group(ledger):
    group, place = ledger.group("cut", update=0)
    ledger.updates[place]["groups"].remove(group)


def cut_twice(ledger):
    group, place = ledger.group("cut", update=0)
    ledger.updates[place]["groups"].append(group)


COMMON = {
    left_out_in_part: r"update \d was left out, but not for all of its samples",
    lose_an_update: r"update 5 follows update 3, expected 4",
    repeat_an_update: r"update 4 follows update 4, expected 5",
    lose_a_sample: rf"has {SIZE - 1} samples, expected {SIZE}",
    use_a_sample_for_another: r"sample 1 is episode 'train-\d+-0000', expected 'train-\d+-0001'",
    swap_samples: r"sample 0 is episode 'train-\d+-0001', expected 'train-\d+-0000'",
    unknown_task: r"the task 'elsewhere', which is none of the training tasks",
    another_number: r"(scheduled was 't\d'|is episode .*, expected)",
    negative_number: r"numbers begin with 0",
    another_advantage: r"has the advantage .*, the rewards of its group give",
    another_sign: r"has the advantage .*, the rewards of its group give",
    no_advantage: r"has the advantage None and the reward",
    a_fault_as_a_reward: r"ended as 'used', but its journal says 'not_judged'",
    a_used_one_as_a_fault: r"ended as 'not_judged', but its journal says 'used'",
    stale: r"ended as 'stale', but its journal says 'used'",
    refilled_in_part: r"is refilled in part, or without curriculum.refill_rounds",
    cut_in_part: r"was cut in part, or without rollout.over_sample",
}
BY_KIND = {
    "sync": {
        another_task: r"has the task 't\d', scheduled was 't\d'",
        lose_a_group: r"update \d: group \d+ is lost: it was scheduled for it",
        use_a_group_twice: r"update \d, group \d+ was used twice: it ended in update \d already",
        equal_as_used: r"ended as 'used', but its journal says 'equal_rewards'",
    },
    "two generations an update": {lose_a_group: r"group \d+ is lost: it was scheduled for it"},
    "two updates a generation": {lose_a_group: r"group \d+ is lost: it was scheduled for it"},
    "refill": {
        lose_a_refilled_group: r"in the ledger round \d; expected once as drawn|is lost: its group ended",
        move_a_refilled_group: r"in the ledger round \d|in the ledger as drawn|has 0 groups",
        refill_with_another_round: r"comes from refill round 7, but curriculum.refill_rounds is 2",
    },
    "over-sampled": {
        lose_a_group: r"update \d has 1 groups, expected 2",
        lose_a_cut_group: r"was never cut, but is sampled again|is lost",
        cut_twice: r"was cut, but ended or was cut in update \d already",
    },
    "async": {
        another_task: r"has the task 't\d', scheduled was 't\d'",
        lose_a_group: r"episode 'train-\d+-\d+' is lost|group \d+ is lost: a later one",
        use_a_group_twice: r"group \d+ was used twice: it ended in update \d already",
    },
}
DAMAGE = [
    *((kind, change, said) for kind in ("sync", "async") for change, said in COMMON.items()),
    *((kind, change, said) for kind, table in BY_KIND.items() for change, said in table.items()),
]


@pytest.mark.parametrize(
    ("kind", "change", "said"), DAMAGE, ids=[f"{kind}-{change.__name__}" for kind, change, _ in DAMAGE]
)
def test_damage_to_the_ledger_is_named(runs, tmp_path, kind, change, said):
    run = shutil.copytree(runs[kind], tmp_path / "run")
    ledger = Ledger(run)
    change(ledger)
    ledger.save()
    assert_named(run, said)


def test_an_update_that_was_left_out_has_used_nothing_and_holds(runs, tmp_path):
    run = shutil.copytree(runs["sync"], tmp_path / "run")
    ledger = Ledger(run)
    for group in ledger.updates[3]["groups"]:
        for sample in group["samples"]:
            if sample["end"] in ("used", "equal_rewards"):
                sample["end"] = "not_finite"
    ledger.save()
    found = check_run(run)
    assert found.violation is None
    assert found.ends[SampleEnd.NOT_FINITE] > 0


@pytest.mark.parametrize("kind", ["sync, saved", "async, saved"])
def test_with_a_checkpoint_no_byte_of_the_ledger_can_change(runs, tmp_path, kind):
    """Not even one that no rule is about."""
    run = shutil.copytree(runs[kind], tmp_path / "run")
    ledger = Ledger(run)
    ledger.updates[0]["time"] += 1
    ledger.save()
    assert_named(run, r"ledger.jsonl: the first \d+ bytes are not those that .*checkpoint-4 was saved with")


@pytest.mark.parametrize("kind", ["curriculum", "refill"])
def test_a_group_that_the_curriculum_did_not_draw_is_named(runs, tmp_path, kind):
    """Each group of the run in turn, as drawn and of a round: its records are of another task everywhere."""
    groups = [(g["number"], g["refill"]) for u in Ledger(runs[kind]).updates for g in u["groups"]]
    assert len({refill for _, refill in groups}) > 1
    drawn = [place for place in groups if place[1] is None][-3:]
    for number, refill in drawn + [place for place in groups if place[1] is not None][-2:]:
        run = shutil.copytree(runs[kind], tmp_path / f"{number}-{refill}")
        have_of_another_task(run, number, refill)
        what = r"was refilled with 't\d' in round" if refill is not None else r"has the task 't\d'"
        assert_named(run, rf"group {number} {what}.*(the curriculum drew|scheduled was) 't\d'")


def have_of_another_task(run: Path, number: int, refill: int | None) -> None:
    ledger = Ledger(run)
    (group,) = [
        group
        for update in ledger.updates
        for group in update["groups"]
        if (group["number"], group["refill"]) == (number, refill)
    ]
    group["task"] = "t6" if group["task"] != "t6" else "t5"
    ledger.save()
    requests = group_requests(Task(group["task"], "?", ""), number, seed=SEED, size=SIZE, refill=refill)
    seeds = {request.id: request.seed for request in requests}
    (path,) = (run / "journal").glob("*.jsonl")
    lines = path.read_bytes().splitlines()
    for place, line in enumerate(lines):
        event = json.loads(line)
        if event.get("event") == "started" and event["episode_id"] in seeds:
            event["task_id"], event["seed"] = group["task"], seeds[event["episode_id"]]
            lines[place] = as_long(event, len(line))
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def as_long(event: dict, size: int) -> bytes:
    """The event as a line of the same length: those after it stay where they are."""
    del event["crc"]
    event["domain"] = ""
    short = with_checksum(json.dumps(event, separators=(",", ":")).encode()).rstrip()
    event["domain"] = "x" * (size - len(short))
    return with_checksum(json.dumps(event, separators=(",", ":")).encode()).rstrip()


def test_draws_by_domains_that_nobody_wrote_are_reported_not_to_be_compared(runs, tmp_path):
    run = shutil.copytree(runs["curriculum"], tmp_path / "run")
    assert "not compared" not in str(check_run(run))
    (run / "tasks.json").write_text(json.dumps({"ids": [task.id for task in TASKS]}))
    assert "not compared: which tasks the curriculum drew (an earlier" in str(check_run(run))


class Written:
    """The files of a journal, to be damaged: of the process that has the most."""

    def __init__(self, run: Path) -> None:
        self.lines = max((run / "journal").glob("*.jsonl"), key=lambda path: path.stat().st_size)
        self.tokens = self.lines.with_suffix(".tokens")

    def events(self) -> list[bytes]:
        return self.lines.read_bytes().splitlines(keepends=True)

    def change(self, of: str, **fields) -> None:
        """Other values in the last event of a kind, as if it had been written so."""
        lines = self.events()
        place = max(i for i, line in enumerate(lines) if json.loads(line)["event"] == of)
        event = json.loads(lines[place]) | fields
        del event["crc"]
        lines[place] = with_checksum(json.dumps(event, separators=(",", ":")).encode())
        self.lines.write_bytes(b"".join(lines))

    def used(self, run: Path) -> str:
        """The last episode that was trained."""
        groups = [g for u in Ledger(run).updates for g in u["groups"]]
        return [s["episode"] for g in groups for s in g["samples"] if s["end"] == "used"][-1]


def test_a_token_that_changed_is_named(runs, tmp_path):
    run = shutil.copytree(runs["sync"], tmp_path / "run")
    written = Written(run)
    content = bytearray(written.tokens.read_bytes())
    for at in (0, len(content) // 2, len(content) - 1):
        changed = content.copy()
        changed[at] ^= 1
        written.tokens.write_bytes(changed)
        assert_named(
            run, r"'train-\d+-\d+' is damaged in the journal: the tokens of .* are not those that were"
        )
    written.tokens.write_bytes(content[:-1])
    assert_named(run, r"'train-000015-0003' is damaged in the journal: the tokens of turn \d")


DAMAGED_LINE = (
    r"is damaged in the journal: |jsonl: the line at byte \d+ is not the one that was written|is not in"
)


@pytest.mark.parametrize("seed", range(4))
def test_a_byte_that_changed_is_named_wherever_it_is(runs, tmp_path, seed):
    """In whatever text, also of an evaluation, of which the ledger knows nothing."""
    run = shutil.copytree(runs["sync"], tmp_path / "run")
    with Journal(run / "journal", start=0, process=1) as journal:
        journal.ended(played(EpisodeRequest("eval-0", TASKS[0], 7), 0), phase="eval", step=1)
        journal.cancelled("eval-0")
    assert check_run(run).violation is None
    draw = random.Random(seed)
    for path in (run / "journal").glob("*.jsonl"):
        content = path.read_bytes()
        for at in draw.sample(range(len(content) - 1), 12):
            changed = bytearray(content)
            changed[at] ^= 1 << draw.randrange(7)
            path.write_bytes(changed)
            assert_named(run, "damaged in the journal")
        path.write_bytes(content)


def test_texts_without_checksums_are_reported_not_to_be_compared(runs, tmp_path):
    run = shutil.copytree(runs["sync"], tmp_path / "run")
    forget_checksums(run)
    found = check_run(run)
    assert found.violation is None
    assert "not compared: the texts of 1 journal files" in str(found)


def forget_checksums(run: Path) -> None:
    """As an earlier version wrote the lines, each of which names the place of the one before it."""
    for path in (run / "journal").glob("*.jsonl"):
        last: dict[str, int] = {}
        written = b""
        for line in path.read_bytes().splitlines():
            event = json.loads(line)
            del event["crc"]
            if "prev" in event:
                event["prev"] = last[event["episode_id"]]
            last[event["episode_id"]] = len(written)
            written += json.dumps(event, separators=(",", ":")).encode() + b"\n"
        path.write_bytes(written)


def test_a_turn_or_an_episode_that_is_gone_is_named(runs, tmp_path):
    run = shutil.copytree(runs["sync"], tmp_path / "run")
    written = Written(run)
    lines, id = written.events(), written.used(run)
    mine = [i for i, line in enumerate(lines) if json.loads(line).get("episode_id") == id]
    blank = [b" " * (len(line) - 1) + b"\n" for line in lines]  # the places of all others stay
    for gone in (mine[1:-1], mine[-1:], mine[:1], mine):
        written.lines.write_bytes(b"".join(blank[i] if i in gone else line for i, line in enumerate(lines)))
        assert_named(
            run, rf"episode '{id}' is (not in the journal|damaged in the journal: it has (0 turns|no beg))"
        )
    written.lines.write_bytes(b"".join(lines))
    with Journal(run / "journal", start=0, process=1) as journal:
        journal.ended(played(EpisodeRequest(id, TASKS[0], 1), 0), phase="train", step=1)
    assert_named(run, rf"'{id}' is damaged in the journal: it has ended twice")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"reward": 0.75}, "has the advantage|ended as|its journal says"),
        ({"reward": None}, "ended as .* but its journal says 'not_judged'"),
        ({"reward": None, "masked": True}, "ended as .* but its journal says 'overlong'"),
        ({"phase": "eval", "reward": 0.75}, "has the advantage|ended as|its journal says"),
        ({"sampled": 99}, "is damaged in the journal: its turns have"),
        ({"turns": 9}, "is damaged in the journal: it has . turns, and ended after 9"),
    ],
)
def test_an_episode_that_ended_otherwise_is_named(runs, tmp_path, fields, said):
    run = shutil.copytree(runs["sync"], tmp_path / "run")
    Written(run).change("ended", **fields)
    assert_named(run, said)


def test_an_episode_that_no_update_knows_is_named(runs, tmp_path):
    """One that was sampled and is in no line, and one whose update has been done again."""
    run = shutil.copytree(runs["sync"], tmp_path / "run")
    with Journal(run / "journal", start=0, process=1) as journal:
        journal.ended(played(EpisodeRequest("train-000003-0009", TASKS[0], 1), 0), phase="train", step=1)
    assert_named(run, r"episode 'train-000003-0009' is lost: its group ended")
    run = shutil.copytree(runs["sync"], tmp_path / "other")
    with Journal(run / "journal", start=1) as journal:
        journal.replaced(["train-000003-0001"])
    assert_named(
        run, r"group 3, sample 1: episode 'train-000003-0001' belongs to an update that was done again"
    )


def test_a_token_older_than_the_bound_is_named(runs, tmp_path):
    run = shutil.copytree(runs["async"], tmp_path / "run")
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("max_staleness: 2", "max_staleness: 1"))
    assert_named(
        run, r"update \d, group \d+, sample \d has a token that was 2 updates old, .*max_staleness is 1"
    )
    changed = {"event": "changed", "step": 8, "time": 0, "field": "grpo.max_staleness", "from": 2, "to": 1}
    with (run / "history.jsonl").open("a") as file:
        file.write(json.dumps(changed) + "\n")
    assert check_run(run).violation is None, "the bound was another when it was trained"


def test_another_seed_or_other_data_are_named(runs, tmp_path):
    run = shutil.copytree(runs["async"], tmp_path / "run")
    recipe = run / "recipe.yaml"
    was = recipe.read_text()
    recipe.write_text(was.replace("seed: 3", "seed: 4"))
    assert recipe.read_text() != was
    assert_named(run, r"has the task 't\d', scheduled was 't\d'|has the seed")
    recipe.write_text(was)
    (run / "tasks.json").write_text(json.dumps({"ids": [f"t{i}" for i in range(6)]}))
    assert_named(run, r"has the task 't\d', (scheduled was|which is none of)")


def test_checkpoints_that_do_not_fit_are_named(runs, tmp_path):
    run = shutil.copytree(runs["async, saved"], tmp_path / "run")
    state = run / "checkpoints" / "checkpoint-4" / "groups.json"
    was = json.loads(state.read_text())
    changed = json.dumps(was | {"first": was["first"] + 9}, separators=(",", ":"))
    state.write_text(changed.ljust(state.stat().st_size))  # of another size it is no complete checkpoint
    assert_named(run, r"checkpoint-4: group \d+ has ended, but the ledger does not have it")
    run = shutil.copytree(runs["sync, saved"], tmp_path / "moved")
    (run / "checkpoints" / "checkpoint-8").rename(run / "checkpoints" / "checkpoint-9")
    assert_named(run, r"checkpoint-9 belongs to 8 updates of the ledger, expected 9")
    shutil.rmtree(run / "checkpoints")
    ledger = Ledger(run)
    del ledger.updates[-1]
    ledger.save()
    assert_named(run, r"episode .* is lost|the ledger ends with update 7, but the run has finished with 8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (shutil.rmtree, "there is no such file, expected a run's directory"),
        (lambda run: (run / "recipe.yaml").unlink(), "expected the recipe of a run"),
        (lambda run: (run / "ledger.jsonl").unlink(), "expected the ledger of a run"),
        (lambda run: shutil.rmtree(run / "journal"), "expected the journal of a run"),
        (lambda run: next((run / "journal").glob("*.tokens")).unlink(), "two for each process"),
        (
            lambda run: (run / "history.jsonl").write_text('{"eve'),
            "check: .* does not say how the run was started",
        ),
        (lambda run: (run / "history.jsonl").unlink(), "check: .* has no history.jsonl"),
        (lambda run: edit(run / "history.jsonl", '"format": 1', '"format": 2'), "check: .* has format 2"),
        (lambda run: edit(run / "history.jsonl", '"sizes"', '"shapes"'), "does not say the sizes"),
        (
            lambda run: (run / "tasks.json").write_text('{"ids": [1]}'),
            "does not hold the ids of the training tasks",
        ),
        (lambda run: (run / "recipe.yaml").write_text("name: [\n"), "recipe.yaml"),
        (lambda run: (run / "ledger.jsonl").write_text('{"ledger":9}\n'), "format 9, expected at most 1"),
        (lambda run: (run / "ledger.jsonl").write_text("{}\n"), "line 1: no line of a ledger"),
    ],
)
def test_what_is_no_run_is_one_line_and_stays_as_it_is(runs, tmp_path, change, said):
    run = shutil.copytree(runs["sync"], tmp_path / "run")
    change(run)
    before = contents(run)
    with pytest.raises(UserError, match=said) as error:
        check_run(run)
    assert "\n" not in str(error.value)
    assert contents(run) == before


def edit(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_run_that_another_process_writes_is_left_alone(runs):
    with at_work(runs["sync"]) as pid:
        with pytest.raises(UserError, match=rf"check: process {pid} .* is at work on"):
            check_run(runs["sync"])
    assert check_run(runs["sync"]).violation is None


def assert_named(run: Path, said: str) -> None:
    found = check_run(run)
    assert found.violation is not None, f"unseen: {found}"
    assert "\n" not in found.violation
    assert re.search(said, found.violation), found.violation
