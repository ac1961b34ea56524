"""FI-13 and FI-14: SIGTERM to any process ends the run within 25 seconds; what is finished is saved.

Ctrl-C finishes the step first; a second one ends the run at once."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from sandbox_rl.training.checkpoints import damage_of, last_intact
from tests import prepared
from tests.faults.kill_points import RECIPE, REPOSITORY, Control
from tests.processes import commands
from tests.smoke.support import saved_model

# Beside other tests everything takes longer.
WITHIN_S = 100.0 if "PYTEST_XDIST_WORKER" in os.environ else 25.0
DEADLINE_S = 200.0


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("signals")
    told = RECIPE | {
        "output_dir": str(directory / "runs"),
        "model": {"path": saved_model(directory / "model"), "dtype": "float32"},
        "episode": RECIPE["episode"] | {"exec_timeout_s": 500, "timeout_s": 600},
        # A checkpoint only where the signal asks for one.
        "grpo": RECIPE["grpo"] | {"save_steps": 100},
    }
    (directory / "r.yaml").write_text(yaml.safe_dump(told))
    return directory / "r.yaml"


def sleepers(seconds: str) -> int:
    """Processes in sandboxes of the run."""
    return list(commands().values()).count(["sleep", seconds])


def nobody_sleeps(seconds: str) -> None:
    """Soon, as the last processes may be on their way out."""
    deadline = time.monotonic() + 60
    while sleepers(seconds):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def arguments(recipe: Path, seconds: str, name: str, processes: int) -> list[object]:
    size = f"grpo.per_device_train_batch_size={4 // processes}"
    return ["tests.faults.slow_run", seconds, recipe, f"name={name}", size]


def interrupted(
    recipe: Path, name: str, seconds: str, processes: list[subprocess.Popen[str]], send: Callable[[], None]
) -> str:
    """Send once the third step's episodes sleep in their sandboxes; what the processes have printed."""
    run, deadline = recipe.parent / "runs" / name, time.monotonic() + DEADLINE_S
    try:
        while not sleepers(seconds):
            assert all(process.poll() is None for process in processes), processes[0].communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        started = time.monotonic()
        send()
        printed = "".join(process.communicate(timeout=4 * WITHIN_S)[0] for process in processes)
        took = time.monotonic() - started
    finally:
        for process in processes:
            process.kill()
    print(f"{name}: ended {took:.1f} s after the signal")
    assert took < WITHIN_S, printed
    nobody_sleeps(seconds)
    checkpoint, _ = last_intact(run / "checkpoints")
    assert checkpoint is not None, printed
    assert checkpoint.name == "checkpoint-2"
    assert damage_of(checkpoint) is None
    assert json.loads((run / "history.jsonl").read_text().splitlines()[-1])["event"] == "stopped"
    return printed


def send_twice(process: subprocess.Popen[str], number: int, between_s: float = 0.7) -> Callable[[], None]:
    def send() -> None:
        process.send_signal(number)
        time.sleep(between_s)
        if process.poll() is None:
            process.send_signal(number)

    return send


def test_sigterm_gives_up_episodes_and_a_second_one_is_harmless(recipe):
    process = prepared.start(*arguments(recipe, "515.25", "term", 1))
    printed = interrupted(recipe, "term", "515.25", [process], send_twice(process, signal.SIGTERM))
    assert process.returncode == 0, printed
    assert how_to_go_on(printed, recipe) == recipe.parent / "runs" / "term"


def how_to_go_on(printed: str, recipe: Path) -> Path:
    """The directory that the printed command, given for this recipe once, goes on with."""
    (command,) = re.findall(r"o on with: (.*)", printed)
    program, name, path, *values, option, directory = shlex.split(command)
    assert (program, name, path, option) == ("sandbox-rl", "train", str(recipe), "--resume")
    assert f"name={Path(directory).name}" in values
    return Path(directory)


def ctrl_c(
    process: subprocess.Popen[str], recipe: Path, name: str, seconds: str, presses: int
) -> tuple[str, str | None]:
    """Pressed while episodes of the third step sleep: what is printed, and the newest checkpoint."""
    run, deadline = recipe.parent / "runs" / name, time.monotonic() + DEADLINE_S
    before = ""
    try:
        while not sleepers(seconds):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        while "Interrupted: the step that runs is finished" not in before:
            line = process.stdout.readline()
            assert line, before
            before += line
        if presses == 2:
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
        printed = before + process.communicate(timeout=4 * WITHIN_S)[0]
    finally:
        process.kill()
    nobody_sleeps(seconds)
    assert "Traceback" not in printed
    checkpoint, _ = last_intact(run / "checkpoints") if (run / "checkpoints").exists() else (None, {})
    assert how_to_go_on(printed, recipe) == run
    return printed, None if checkpoint is None else checkpoint.name


def test_ctrl_c_finishes_the_step(recipe):
    process = prepared.start(*arguments(recipe, "3.125", "once", 1))
    printed, checkpoint = ctrl_c(process, recipe, "once", "3.125", presses=1)
    assert (process.returncode, checkpoint) == (0, "checkpoint-3"), printed


def test_ctrl_c_twice_ends_at_once(recipe):
    process = prepared.start(*arguments(recipe, "525.25", "twice", 1), "grpo.save_steps=1")
    printed, checkpoint = ctrl_c(process, recipe, "twice", "525.25", presses=2)
    assert (process.returncode, checkpoint) == (130, "checkpoint-2"), printed


@pytest.mark.faults
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_under_the_launcher_of_train(recipe, presses):
    name, seconds = f"launched-{presses}", "3.375" if presses == 1 else "527.25"
    command = [sys.executable, "-c", LAUNCH, *map(str, arguments(recipe, seconds, name, 2))]
    process = prepared.Popen(
        [*command, "grpo.save_steps=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
    )
    printed, checkpoint = ctrl_c(process, recipe, name, seconds, presses)
    expected = (0, "checkpoint-3") if presses == 1 else (130, "checkpoint-2")
    assert (process.returncode, checkpoint) == expected, printed


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_of_two_ends_both(recipe, rank):
    name, seconds = f"two-{rank}", f"60{rank}.25"
    processes = prepared.ranks(2, *arguments(recipe, seconds, name, 2))
    printed = interrupted(recipe, name, seconds, processes, send_twice(processes[rank], signal.SIGTERM))
    assert [process.returncode for process in processes] == [0, 0], printed


LAUNCHERS = {
    "accelerate-1": ("accelerate.commands.launch", "--num_processes", "1", "--cpu"),
    "torchrun-2": ("torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
}


@pytest.mark.faults
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_signal_to_the_launcher_ends_what_it_has_started(recipe, launcher):
    """Its own exit code is its own business; its processes save, and nothing is left."""
    processes = int(launcher[-1])
    module, *options = LAUNCHERS[launcher]
    seconds = f"70{processes}.25"
    command = [sys.executable, "-m", module, *options, "-m", *arguments(recipe, seconds, launcher, processes)]
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    # Its output ends when the last of its processes does.
    printed = interrupted(recipe, launcher, seconds, [process], lambda: process.send_signal(signal.SIGTERM))
    how_to_go_on(printed, recipe)


LAUNCH = """
import sys
from sandbox_rl.config.recipe import LaunchSettings
from sandbox_rl.runs.launch import Launch, run_launch
sys.exit(run_launch(Launch(2, LaunchSettings(), None), sys.argv[2:], module=sys.argv[1]))
"""


@pytest.mark.faults
@pytest.mark.parametrize("killed", [False, True], ids=["term", "kill"])
def test_what_ends_the_command_that_started_several_ends_them_all(recipe, killed):
    """What `sandbox-rl train` does with `launch.processes=2`; torch's launcher would end them too early."""
    name, seconds = f"ours-{killed}", f"70{2 + killed}.75"
    command = [sys.executable, "-c", LAUNCH, *map(str, arguments(recipe, seconds, name, 2))]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY
    )
    send = process.kill if killed else send_twice(process, signal.SIGTERM)
    printed = interrupted(recipe, name, seconds, [process], send)
    assert process.returncode == (-signal.SIGKILL if killed else 0), printed
    how_to_go_on(printed, recipe)


@pytest.mark.faults
@pytest.mark.parametrize("how", ["term", "ctrl-c", "ctrl-c twice"])
def test_an_asynchronous_run_ends_between_two_updates_or_at_once(tmp_path, how):
    control = Control(tmp_path, "async", 1)
    (process,) = control.start("x", "none", 0, "grpo.max_steps=10000", "grpo.save_steps=10000")
    run, deadline = control.run("x"), time.monotonic() + DEADLINE_S
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    started = time.monotonic()
    number = signal.SIGTERM if how == "term" else signal.SIGINT
    if how == "ctrl-c":
        process.send_signal(number)
    else:
        send_twice(process, number, between_s=0.4)()
    printed = process.communicate(timeout=4 * WITHIN_S)[0]
    took = time.monotonic() - started
    print(f"async, {how}: ended {took:.1f} s after the signal")
    assert took < WITHIN_S, printed
    assert "Traceback" not in printed
    psutil.wait_procs(children, timeout=5)
    assert not [child for child in children if child.is_running()]
    if how == "ctrl-c twice":
        assert process.returncode == 130, printed
        return
    assert process.returncode == 0, printed
    assert control.outcome(run) == {"violation": None, "twice": [], "lost": [], "damaged": []}
