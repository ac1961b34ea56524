"""Two processes stop, and fail, together: neither waits for the other in vain, and a person reads it once."""

from __future__ import annotations

import json
import signal
import time

import pytest
import yaml

from sandbox_rl.errors import InfraFault, SandboxFault, SandboxRLError, SetupError
from sandbox_rl.training.agreement import _as_here, any_of, together
from sandbox_rl.training.checkpoints import last_complete
from tests import prepared
from tests.smoke.support import saved_model
from tests.smoke.test_data_order import RECIPE


def test_alone_there_is_nothing_to_agree_upon():
    assert (any_of(True), any_of(False)) == (True, False)
    with pytest.raises(SandboxFault, match="as it is"), together():
        raise SandboxFault("as it is")
    with pytest.raises(SetupError, match=r"No space left.*free some space"), together():
        raise OSError(28, "No space left on device")


def test_what_failed_elsewhere_is_raised_as_what_it_was():
    found = _as_here(1, "SandboxFault", "no room", of=2)
    assert (type(found), str(found)) == (SandboxFault, "process 1 of 2: no room")
    assert isinstance(found, InfraFault)
    other = _as_here(0, "KeyError", "'x'", of=2)
    assert (type(other), str(other)) == (SandboxRLError, "process 0 of 2: KeyError: 'x'")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    directory = tmp_path_factory.mktemp("agreement")
    path = directory / "r.yaml"
    grpo = RECIPE["grpo"] | {"per_device_train_batch_size": 8, "max_steps": 2}
    model = {"path": saved_model(directory / "model"), "dtype": "float32"}
    told = RECIPE | {"output_dir": str(directory / "runs"), "grpo": grpo, "model": model}
    path.write_text(yaml.safe_dump(told))
    return path


def two(fault: str, *arguments: str) -> list[prepared.Popen]:
    return prepared.ranks(2, "tests.smoke.rank_faults", fault, *arguments)


def one(fault: str, *arguments: str) -> list[prepared.Popen]:
    """The only process of a run."""
    return [prepared.start("tests.smoke.rank_faults", fault, *arguments)]


def ends(processes) -> tuple[list[int], list[str]]:
    """Exit codes and what each said about errors."""
    try:
        printed = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for text in printed:
        assert "Traceback" not in text, text
    said = [line for text in printed for line in text.splitlines() if line.startswith("Error")]
    return [process.returncode for process in processes], said


@pytest.mark.slow
def test_a_signal_to_one_of_two_ends_both_with_a_checkpoint(recipe):
    run = recipe.parent / "runs" / "signal"
    endless = ("grpo.max_steps=10000", "grpo.save_steps=10000")
    processes = two("none", str(recipe), "name=signal", *endless)
    deadline = time.monotonic() + 240
    while not (run / "metrics.jsonl").exists():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    assert ends(processes) == ([0, 0], [])
    assert last_complete(run / "checkpoints") is not None


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_whose_every_episode_failed_ends_both_with_one_message_and_keeps_the_update_before(
    recipe, rank
):
    codes, said = ends(two(f"rollouts-{rank}", str(recipe), f"name=rollouts-{rank}", "grpo.save_steps=2"))
    assert codes == [3, 3]
    (line,) = said
    assert "all 8 episodes failed on our side" in line
    assert "no room for a sandbox" in line
    checkpoint = last_complete(recipe.parent / "runs" / f"rollouts-{rank}" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-1"


@pytest.mark.slow
def test_a_process_that_cannot_save_ends_both_with_one_message(recipe):
    codes, said = ends(two("save-1", str(recipe), "name=save"))
    assert codes == [2, 2]
    (line,) = said
    assert "No space left on device" in line
    assert last_complete(recipe.parent / "runs" / "save" / "checkpoints") is None


@pytest.mark.slow
def test_a_warm_up_that_fails_ends_both_with_one_message(recipe):
    block = {"episodes": 3, "expert": "tests.smoke.rank_faults:gives_up"}
    codes, said = ends(two("none", str(recipe), "name=warm", f"warmup={json.dumps(block)}"))
    assert codes == [2, 2]
    (line,) = said
    assert "solved none of 3 tasks" in line
