"""gpu_bench: what it runs is valid, goes on after a cut, ends in time, and counts right."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest
import yaml

from sandbox_rl.config.load import load_recipe
from sandbox_rl.model_builders import training_arguments
from tests import prepared
from tests.unit.test_gpu_scripts import SCRIPTS, load


@pytest.mark.parametrize("way", ["sync", "async", "local", "trl"])
@pytest.mark.parametrize("model", [None, "some/model"])
def test_every_way_trains_on_about_equally_many_episodes_per_update(tmp_path, way, model):
    steps = load("gpu_bench_steps")
    for name, scale in steps.SCALES.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(steps.recipe(way, 3, scale, model, tmp_path)))
        loaded = load_recipe(path)
        args = training_arguments(loaded, tmp_path)
        assert args.per_device_train_batch_size == scale["episodes"]
        assert args.gradient_accumulation_steps == 1
        assert args.max_steps == scale["updates"]
        if way == "async":
            assert args.token_budget == steps.TOKENS_PER_EPISODE * scale["episodes"]
        else:
            assert args.generation_batch_size == scale["episodes"]


def test_the_warm_up_waits_before_each_command():
    import random

    from sandbox_rl.types import Task

    waiting = load("gpu_bench_expert").waiting
    task = Task(id="t", prompt="What is 12 + 30?", answer="42")
    turns = list(waiting(task, random.Random(0)))
    assert [turn.calls[0].name for turn in turns] == ["execute_bash", "submit"]
    assert turns[0].calls[0].arguments["command"].startswith("sleep 0.")


def line(step: int, when: float, reward: float) -> dict[str, float]:
    return {"step": step, "time": when, "grad_norm": 1.0, "reward/mean": reward, "step_time": 2.0}


def test_the_first_update_and_what_came_before_it_are_not_counted():
    steps = load("gpu_bench_steps")
    lines = [
        {"step": 0, "time": 10.0, "eval/accuracy": 0.25},
        line(1, 100.0, 0.1),
        line(2, 103.0, 0.2),
        line(3, 104.0, 0.4),
        {"step": 3, "time": 150.0, "eval/accuracy": 0.75},
    ]
    busy = [(90.0, 0.0), (101.0, 0.5), (103.5, 1.0), (140.0, 0.0)]
    found = steps.summary(lines, busy, episodes=16)
    assert found["seconds_per_update"] == 2.0
    assert found["reward"] == pytest.approx(0.3)
    assert found["held_out"] == [0.25, 0.75]
    assert found["gpu_busy"] == 0.75
    assert [row["ends"] for row in found["timeline"]] == [0.0, 3.0, 4.0]
    assert "gpu_busy" not in steps.summary(lines, [], episodes=16)
    with pytest.raises(SystemExit, match="1 updates were logged"):
        steps.summary(lines[:2], [], episodes=16)


def measured(seconds: float, reward: float = 0.5) -> dict[str, float]:
    return {"seconds_per_update": seconds, "reward": reward, "gpu_busy": 0.95}


def test_figures_are_ratios_of_what_was_measured():
    bench = load("gpu_bench")
    parts = {
        "smoke": {"parts": {"sync": {"mismatch/mean": 0.01}, "masters": {"update/changed": 0.5}}},
        "trainer": {"ratio": 0.85, "scale": "tiny", "tokens_per_s": 700.0},
        "trainer adapters": {"ratio": 0.75, "scale": "full", "tokens_per_s": 7000.0},
        "transfer": {
            "transfers": [{"transfer": "ipc", "size": "600M", "publish_s": 0.1, "publish_stall_s": 0.5}]
        },
        "rollouts": {"rows": [{"in_flight": 96, "slots": 64, "ratio": 0.92}]},
        "steps sync 0": measured(4.0),
        "steps async 0": measured(2.0, 0.52),
        "steps sync 1": measured(2.0),
        "steps async 1": measured(1.0, 0.48),
        "steps async 2": measured(100.0),  # its counterpart is missing
        "steps trl 0": measured(16.0),
    }
    found = {what: (value, kept(value)) for what, value, _, kept in bench.figures(parts)}
    assert found == {
        "sync: sampler - trainer, nats": (0.01, True),
        "of what an update at 1e-6 should change, in bfloat16": (0.5, False),
        "update / bare pass, in full, tokens/s": (0.85, True),
        "update / bare pass, adapters, tokens/s": (0.75, False),
        "update of Qwen3-4B, adapters, tokens/s": (7000.0, True),
        "publish by ipc, 600M, s": (0.1, True),
        "stall by ipc, 600M, s": (0.5, False),
        "tokens/s with / without tools, 96 in flight on 64 slots": (0.92, True),
        "async / sync update, 2 seeds, s": (0.5, True),
        "reward of async - sync": (pytest.approx(0.0), True),
        "GPU idle in async, share": (pytest.approx(0.05), True),
        "sync update / TRL's environment_factory, s": (0.25, True),
    }
    assert bench.figures({}) == []


def test_what_is_worth_most_is_measured_first_and_what_cannot_run_is_reported(tmp_path):
    bench = load("gpu_bench")
    parts = bench.commands("full", 3, None, tmp_path)
    first = ["smoke", "trainer", "trainer adapters", "rollouts", "steps sync 0", "steps async 0"]
    assert list(parts)[: len(first)] == first
    assert {name.split()[0] for name in parts} == set(bench.FAMILIES)
    assert all((SCRIPTS / command[0]).is_file() for command in parts.values())
    said = bench.left_out(0), bench.left_out(1), bench.left_out(2)
    assert [sum("need" in line and "card" in line for line in lines) for lines in said] == [4, 1, 0]


def test_rates_are_of_the_time_in_which_the_number_in_flight_is_kept_up():
    rollouts = load("gpu_bench_rollouts")
    record = rollouts.Record(begun=[0.0, 0.0, 4.0], ended=[(1.0, 10), (4.0, 30), (9.0, 100)])
    assert record.rate() == 10.0


def test_after_a_cut_only_what_is_missing_is_measured(tmp_path):
    bench = load("gpu_bench")
    out = tmp_path / "out"
    out.mkdir()
    trained = {"ratio": 1, "scale": "tiny", "tokens_per_s": 1.0}
    parts = {"trainer": trained, "trainer adapters": trained}
    done = {"device": bench.device_name(), "scale": "tiny", "model": None, "parts": parts}
    bench.save(out / "gpu_bench.json", done)
    command = [sys.executable, str(SCRIPTS / "gpu_bench.py"), "--scale", "tiny", "--out", str(out)]
    again = prepared.run([*command, "--only", "trainer"], timeout=400)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "1.000  >= 0.80  kept" in again.stdout
    assert not (out / "trainer.log").exists()
    assert json.loads((out / "gpu_bench.json").read_text())["figures"][0]["value"] == 1
    other = prepared.run([*command, "--model", "another"], timeout=400)
    assert (other.returncode, "give another --out" in other.stdout) == (2, True)


def test_time_that_runs_out_leaves_no_process_and_no_figure(tmp_path, monkeypatch):
    bench = load("gpu_bench")
    groups, start = [], bench.start

    def noted(command, output):
        process = start(command, output)
        groups.append(process.pid)
        return process

    monkeypatch.setattr(bench, "start", noted)
    found = bench.run(
        ["gpu_bench_trainer.py", "--scale", "tiny"],
        tmp_path / "log",
        tmp_path / "result.json",
        deadline=time.monotonic() + 3,
    )
    assert found is None
    (group,) = groups
    deadline = time.monotonic() + 60
    while lives(group):  # its children are in the same group; killed ones are there until they are reaped
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_failed_check_has_measured_is_shown_and_the_check_is_done_again(tmp_path):
    bench, script = load("gpu_bench"), tmp_path / "check.py"
    found = {"ok": False, "parts": {"sync": {"mismatch/mean": 0.3}}}
    script.write_text(f"import sys; open(sys.argv[-1], 'w').write({json.dumps(found)!r}); sys.exit(1)")
    measured = bench.run([str(script)], tmp_path / "log", tmp_path / "result.json", time.monotonic() + 60)
    assert measured == found
    assert [(value, kept(value)) for _, value, _, kept in bench.figures({"smoke": measured})] == [
        (0.3, False)
    ]
    assert not bench.done({"smoke": measured}, "smoke")
    assert not bench.done({}, "smoke")
    assert bench.done({"trainer": {"ratio": 0.5}}, "trainer")


def lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_the_trainer_is_measured_with_and_without_a_server_s_log_probs(tmp_path, monkeypatch, lora):
    trainer = load("gpu_bench_trainer")
    monkeypatch.setitem(trainer.TOKENS, "tiny", 32)
    monkeypatch.setitem(trainer.UPDATES, "tiny", 2)
    for served in (True, False):
        seconds, _ = trainer.update("tiny", tmp_path / str(served), lora=lora, served=served)
        assert len(seconds) == 2
