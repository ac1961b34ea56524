"""Two processes stop, and fail, together: neither waits for the other in vain, and a person reads it once."""

from __future__ import annotations

import json
import signal
import time

import pytest
import yaml

from sandbox_rl.errors import InfraFault, SandboxFault, SandboxRLError, SetupError
from sandbox_rl.training.agreement import any_of, as_here, together
from sandbox_rl.training.checkpoints import last_complete, step_of
from tests import prepared
from tests.faults.served import served
from tests.processes import gone, tree_of
from tests.smoke.support import saved_model
from tests.smoke.test_data_order import RECIPE


def test_alone_there_is_nothing_to_agree_upon():
    assert (any_of(True), any_of(False)) == (True, False)
    with pytest.raises(SandboxFault, match="as it is"), together():
        raise SandboxFault("as it is")
    with pytest.raises(SetupError, match=r"No space left.*free some space"), together():
        raise OSError(28, "No space left on device")


def test_what_failed_elsewhere_is_raised_as_what_it_was():
    found = as_here(1, "SandboxFault", "no memory", of=2)
    assert (type(found), str(found)) == (SandboxFault, "process 1 of 2: no memory")
    assert isinstance(found, InfraFault)
    other = as_here(0, "KeyError", "'x'", of=2)
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
    printed = prepared.outputs(processes)
    for text in printed:
        assert "Traceback" not in text, text
    said = [line for text in printed for line in text.splitlines() if line.startswith("Error")]
    return [process.returncode for process in processes], said


MODES = {
    "sync": {"grpo": {"per_device_train_batch_size": 8}},
    "async": {"mode": "async", "grpo": {"token_budget": 1024}},
}
"""Blocks of a recipe: what goes into an update of each process."""


def endless(recipe, mode):
    """Of episodes that come from a server without a model (`tests.faults.served`), which solves half."""
    told = yaml.safe_load(recipe.read_text()) | {
        "name": f"signal-{mode}",
        "policy": {"type": "vllm", "engine": "external"},
        "episode": RECIPE["episode"] | {"max_tokens": 1000, "turn_tokens": 100},
        "rollout": RECIPE["rollout"] | {"overlong": "score"},  # all of them use up their turns
    }
    grpo = {
        "num_generations": 4,
        "max_steps": 10_000,
        "save_steps": 10_000,
        "activation_checkpointing": False,
    }
    path = recipe.with_name(f"{mode}.yaml")
    path.write_text(yaml.safe_dump(told | MODES[mode] | {"grpo": grpo | MODES[mode]["grpo"]}))
    return path


def updates(run) -> int:
    """As many as whole lines say that there were, while somebody writes."""
    path = run / "metrics.jsonl"
    lines = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_signal_to_one_of_two_ends_both_with_a_checkpoint_and_the_run_goes_on(recipe, mode):
    run = recipe.parent / "runs" / f"signal-{mode}"
    with served() as server:
        told = ("none", str(endless(recipe, mode)), f"policy.base_urls=[{server}]")
        processes = two(*told)
        deadline = time.monotonic() + 240
        while not updates(run):
            assert all(process.poll() is None for process in processes), ends(processes)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        family = {pid for process in processes for pid in tree_of(process.pid)}
        before = updates(run)
        processes[1].send_signal(signal.SIGTERM)
        assert ends(processes) == ([0, 0], [])
        gone(family)
        step = updates(run)
        assert step <= before + 2, "it goes on to the end of an update, and of no other"
        checkpoint = last_complete(run / "checkpoints")
        assert checkpoint is not None
        assert step_of(checkpoint) == step

        assert ends(two(*told, "--resume", f"grpo.max_steps={step + 1}")) == ([0, 0], [])
    assert updates(run) == step + 1
    assert (run / "export" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_whose_every_episode_failed_ends_both_with_one_message_and_keeps_the_update_before(
    recipe, rank
):
    codes, said = ends(two(f"rollouts-{rank}", str(recipe), f"name=rollouts-{rank}", "grpo.save_steps=2"))
    assert codes == [3, 3]
    (line,) = said
    assert "all 8 episodes failed on our side" in line
    assert "no memory for a sandbox" in line
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
