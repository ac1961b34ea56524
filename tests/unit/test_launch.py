"""Which processes `sandbox-rl train` starts by itself, and what it refuses before anything starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from sandbox_rl.config.recipe import LaunchSettings, Recipe
from sandbox_rl.errors import ConfigError
from sandbox_rl.runs import launch as launching
from sandbox_rl.runs.division import Division, Way, check_checkpoint, check_division, way_of
from sandbox_rl.runs.launch import Launch, cards_that_train, division_of, plan_launch, run_launch
from sandbox_rl.training.agreement import started_among
from tests import prepared

TP2, DP2 = {"tensor_parallel_size": 2}, {"data-parallel-size": 2}
ROOT = Path(__file__).parents[2]


def started(world: object, rank: object = 0) -> dict[str, str]:
    """What a launcher gives to a process."""
    place = {"WORLD_SIZE": world, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "a", "MASTER_PORT": 1}
    return {name: str(value) for name, value in place.items()}


def plan(*, cards: int = 0, environment: dict[str, str] | None = None, **fields: object) -> Launch | None:
    return plan_launch(LaunchSettings(**fields), cards=cards, training=cards, environment=environment or {})


def test_a_recipe_that_says_auto_is_read_again():
    """As in a resolved recipe, which says every default."""
    assert LaunchSettings.model_validate(LaunchSettings().model_dump()).processes == "auto"
    with pytest.raises(ValueError, match="processes"):
        LaunchSettings(processes=0)


@pytest.mark.parametrize(
    ("cards", "fields", "processes"),
    [
        (0, {}, None),
        (1, {}, None),
        (8, {}, 8),
        (8, {"processes": 4}, 4),
        (8, {"processes": 1}, None),
        (0, {"processes": 2}, 2),
        (1, {"machines": 2, "main_address": "first", "main_port": 29500}, 1),
    ],
)
def test_a_process_for_each_card_unless_said_otherwise(cards, fields, processes):
    launch = plan(cards=cards, **fields)
    assert (None if launch is None else launch.each) == processes


@pytest.mark.parametrize(
    ("policy", "mode", "training"),
    [
        ({"type": "transformers"}, "sync", 8),
        ({"type": "vllm"}, "sync", 8),
        ({"type": "vllm"}, "async", 4),
        ({"type": "vllm", "placement": "one"}, "sync", 1),
        ({"type": "vllm", "placement": "split"}, "sync", 4),
        ({"type": "vllm", "placement": "split", "servers": 2}, "sync", 6),
        ({"type": "vllm", "placement": "split", "servers": 1, "arguments": TP2}, "sync", 6),
        ({"type": "vllm", "placement": "split", "servers": 1, "arguments": TP2 | DP2}, "sync", 4),
        ({"type": "vllm", "placement": "split", "arguments": {"tensor-parallel-size": 3}}, "sync", 5),
        ({"type": "vllm", "arguments": {"tensor-parallel-size": 6}}, "async", 2),
        ({"type": "vllm", "environment": {"CUDA_VISIBLE_DEVICES": "6,7"}}, "sync", 6),
        ({"type": "vllm", "environment": {"CUDA_VISIBLE_DEVICES": "7"}}, "async", 7),
        ({"type": "vllm", "engine": "external", "base_urls": ["http://one:1"]}, "async", 8),
    ],
)
def test_cards_that_servers_have_for_themselves_do_not_train(policy, mode, training):
    recipe = Recipe.model_validate(
        {"data": {"sources": [{"type": "table", "path": "rows.jsonl"}]}, "policy": policy, "mode": mode}
    )
    assert cards_that_train(recipe, 8) == training
    assert cards_that_train(recipe, 1) == 1
    assert cards_that_train(recipe, 0) == 0


def test_who_says_how_many_train_may_leave_servers_another_share_than_half():
    settings = LaunchSettings(processes=6)
    launch = plan_launch(settings, cards=8, training=4, environment={})
    assert launch is not None
    assert launch.each == 6
    with pytest.raises(ConfigError, match="processes: 6, but 4 CUDA cards are to be seen"):
        plan_launch(settings, cards=4, training=2, environment={})


def test_a_launcher_s_process_starts_no_others():
    assert plan(cards=8, environment=started(8)) is None
    assert plan(cards=8, environment=started(8), processes=8) is None


def test_the_only_process_of_accelerate_s_launcher_starts_no_others():
    """`accelerate launch --num_processes 1` says nothing of places, and has been asked for one process."""
    alone = {"ACCELERATE_USE_CPU": "False", "ACCELERATE_MIXED_PRECISION": "no"}
    assert plan(cards=8, environment=alone) is None
    with pytest.raises(ConfigError, match="one of 1 processes"):
        plan(cards=8, environment=alone, processes=8)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "8"}, "WORLD_SIZE without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "3"}, "RANK without WORLD_SIZE"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK without WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "without LOCAL_RANK"),
        ({"ACCELERATE_USE_FSDP": "true"}, "ACCELERATE_USE_FSDP without WORLD_SIZE, RANK"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED without"),
        ({"ACCELERATE_USE_CPU": "true"}, "ACCELERATE_USE_CPU without"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "ACCELERATE_MIXED_PRECISION without"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "ACCELERATE_DYNAMO_BACKEND without"),
        ({"ACCELERATE_GRADIENT_CLIPPING": "1"}, "ACCELERATE_GRADIENT_CLIPPING without"),
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2", "FSDP_A": "1"}, "ACCELERATE_DEEPSPEED_ZERO_STAGE, FSDP_A"),
        ({"WORLD_SIZE": "8", "FSDP_VERSION": "2"}, "`unset WORLD_SIZE FSDP_VERSION`"),
        (started("many"), "WORLD_SIZE='many'"),
        (started(""), "WORLD_SIZE=''"),
        (started(2, 2), "RANK='2'"),
        (started(2, -1), "RANK='-1'"),
    ],
)
def test_what_a_launcher_has_left_in_the_environment_is_no_launcher(environment, said):
    """One process alone would wait for the others, use one card of eight, or take itself for a silent one;
    processes that we start would train as the environment says, and not as the recipe does."""
    with pytest.raises(ConfigError, match=re.escape(said)) as refused:
        plan(cards=8, environment=environment)
    assert re.search(r"`unset .*`, or start it by `accelerate launch`$", str(refused.value))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("environment", "one"),
    [
        ({"SLURM_STEP_NUM_TASKS": "8"}, "srun --ntasks=1"),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "1"}, "srun --ntasks=1"),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": ""}, "srun --ntasks=1"),
        ({"SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NUM_NODES": "2"}, "srun --ntasks=1"),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "8", "OMPI_COMM_WORLD_SIZE": "8"}, "mpirun -n 1"),
        ({"MPI_LOCALNRANKS": "8", "PMI_SIZE": "8"}, "mpirun -n 1"),
    ],
)
def test_tasks_that_would_each_take_all_cards_are_refused(environment, one):
    """`srun -n 8 sandbox-rl train`: 64 processes on eight cards."""
    with pytest.raises(ConfigError, match=f"write `{one} sandbox-rl train") as refused:
        plan(cards=8, environment=environment)
    name = next(iter(environment))
    assert f"`unset {name}` where no other task sees these cards" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert plan(cards=1, environment=environment) is None, "a card of its own for each, as for a sweep"
    assert plan(cards=8, environment=environment | started(8)) is None, "what they have started is a launcher"


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_NTASKS": "8", "SLURM_LOCALID": "0"},
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"},
        {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"},
        {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_SIZE": "2"},
        {"MPI_LOCALNRANKS": "1", "PMI_SIZE": "2"},
    ],
)
def test_one_task_on_a_machine_starts_all_of_its_cards(environment):
    """A batch script without `srun`, one of a job array, or one on each of several machines."""
    launch = plan(cards=8, environment=environment)
    assert launch is not None
    assert launch.each == 8


def test_what_belongs_to_no_place_is_left_alone():
    assert started_among({"MASTER_ADDR": "a", "MASTER_PORT": "1", "SLURM_NTASKS": "8"}) is None
    assert started_among({"ACCELERATE_LOG_LEVEL": "info", "ACCELERATE_TORCH_DEVICE": "cpu"}) is None
    assert started_among(started(8, 7)) == 8


FSDP_HERE = started(8) | {"ACCELERATE_USE_FSDP": "true"}


def test_a_launcher_that_does_otherwise_than_the_recipe_says_is_refused():
    """The whole model on each card, and a batch of another size, without a word."""
    assert plan(cards=8, environment=FSDP_HERE, config="fsdp2") is None
    assert plan(cards=8, environment=FSDP_HERE) is None, "who starts it may decide"
    for environment, said in ((started(8), "whole model on each process"), (FSDP_HERE, "by FSDP")):
        with pytest.raises(ConfigError, match=f"'zero3' is DEEPSPEED, .* {said}.*launch.config=null"):
            plan(cards=8, environment=environment, config="zero3")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff\xfe\x00", "UnicodeDecodeError"),
        (b"", "no configuration of accelerate's"),
        (b"- a\n", "no configuration of accelerate's"),
        (b"a: [\n", "no configuration of accelerate's"),
        (b"nonsense: 1\n", "no configuration of accelerate's"),
        (
            b"distributed_type: MEGATRON_LM\nnum_processes: 8\n",
            "distributed_type MEGATRON_LM, expected one of",
        ),
        (
            b"distributed_type: DEEPSPEED\nnum_processes: 8\ndeepspeed_config: {zero_stage: 2}\n",
            "ZeRO stage 2, expected 3",
        ),
    ],
)
def test_a_file_that_accelerate_cannot_use_is_refused_before_it_starts_anything(tmp_path, text, said):
    (tmp_path / "own.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=re.escape(said)) as refused:
        plan(cards=8, config=str(tmp_path / "own.yaml"))
    assert "launch.config=fsdp2" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_of_one_s_own_is_read_as_accelerate_reads_it(tmp_path):
    """Quoted, or with DeepSpeed's own file: what is read otherwise is planned otherwise."""
    own, zero = tmp_path / "own.yaml", tmp_path / "zero.json"
    own.write_text("distributed_type: 'FSDP'\nnum_processes: 8\nfsdp_config: {fsdp_version: 2}\n")
    assert way_of(own) == Way("FSDP")
    zero.write_text('{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}')
    block = {"distributed_type": "DEEPSPEED", "num_processes": 8}
    own.write_text(yaml.safe_dump(block | {"deepspeed_config": {"deepspeed_config_file": str(zero)}}))
    assert way_of(own) == Way("DEEPSPEED", offloads=True)


def test_a_configuration_for_one_card_starts_as_many_processes_as_there_are():
    """By itself accelerate would start one, which is no launcher's process and would start others again."""
    launch = plan(cards=8, config="one_gpu")
    assert launch is not None
    assert launch.each == 8
    assert "--multi_gpu" in launch.arguments()


def test_an_optimizer_in_the_host_s_memory_is_not_dropped_on_one_card(monkeypatch, tmp_path):
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    launch = plan(cards=1, config="zero3")
    assert launch is not None
    assert str(launch) == "1 process, zero3.yaml"
    assert plan(cards=1, config="fsdp2") is None, "nothing to divide"


@pytest.mark.parametrize(
    ("files", "way", "processes", "said"),
    [
        (["pytorch_model_fsdp.bin", "optimizer.bin"], "FSDP", 2, None),
        (["pytorch_model_fsdp.bin", "optimizer.bin"], None, 2, "divided by FSDP, .*set launch.config=fsdp2"),
        (["model.safetensors", "optimizer.pt"], None, 2, None),
        (["model.safetensors", "optimizer.pt"], "FSDP", 2, "whole on each process.*launch.config=null"),
        (["global_step3/zero_pp_rank_{}_mp_rank_00_optim_states.pt"], "DEEPSPEED", 2, None),
        (["global_step3/bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt"], "DEEPSPEED", 4, "in 2 parts"),
        (["global_step3/a", "model.safetensors"], None, 2, "by DeepSpeed, .*set launch.config=zero3"),
        (["pytorch_model_fsdp.bin"], None, 1, "set launch.config=fsdp2 on two cards or more, or"),
    ],
)
def test_a_run_goes_on_only_as_its_checkpoint_was_saved(tmp_path, files, way, processes, said):
    """transformers begins with a new optimizer, without a word, where it does not find what was saved."""
    checkpoint = tmp_path / "checkpoint-3"
    for name in (name.format(rank) for name in files for rank in range(2)):
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).touch()
    division = Division(Way(way), ranks=processes, processes=processes)
    check_checkpoint(None, division)
    if said is None:
        check_checkpoint(checkpoint, division)
        return
    with pytest.raises(ConfigError, match=said) as refused:
        check_checkpoint(checkpoint, division)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("cards", "environment", "fields", "said"),
    [
        (8, started(4), {"processes": 8}, "a launcher has started this as one of 4 processes"),
        (2, {}, {"processes": 4}, "2 CUDA cards are to be seen"),
        (0, {}, {"config": "fsdp2"}, "divides a model over CUDA cards"),
        (8, {}, {"config": "fdsp2"}, "expected one of fsdp2"),
        (8, {}, {"machines": 2}, "expected the address of machine 0"),
        (8, {}, {"machine_rank": 1}, "expected below launch.machines (1)"),
    ],
)
def test_what_cannot_be_started_is_refused_in_one_line(cards, environment, fields, said):
    with pytest.raises(ConfigError, match=re.escape(said)) as refused:
        plan(cards=cards, environment=environment, **fields)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_a_launch_by_deepspeed_needs_it():
    with pytest.raises(ConfigError, match="'zero3' needs DeepSpeed, which is not installed") as refused:
        plan(cards=8, config="zero3")
    assert "launch.config=fsdp2" in str(refused.value)


@pytest.mark.parametrize(
    ("way", "blocks", "said"),
    [
        ("FSDP", {"policy": {"type": "transformers"}}, "'transformers', but 8 processes divide the model"),
        ("FSDP", {"policy": {"type": "transformers"}}, "policy.type=vllm, or have your launcher leave it"),
        (
            "FSDP",
            {"policy": {"type": "transformers"}, "launch": {"config": "fsdp2"}},
            "policy.type=vllm, or leave launch.config out",
        ),
        ("DEEPSPEED", {"policy": {"type": "transformers"}}, "set policy.type=vllm"),
        ("DEEPSPEED", {"mode": "async"}, "set launch.config=fsdp2, or mode=sync"),
        ("DEEPSPEED", {"update": {"micro_batch_tokens": 64}}, "64, expected none with DeepSpeed"),
        ("DEEPSPEED", {}, None),
        ("FSDP", {"mode": "async"}, None),
        ("FSDP", {"update": {"micro_batch_tokens": 64}}, None),
        (None, {"policy": {"type": "transformers"}}, None),
    ],
)
def test_what_a_divided_model_cannot_do_is_refused_in_one_line(way, blocks, said):
    blocks = {"data": {"sources": [{"type": "table", "path": "a"}]}, "policy": {"type": "vllm"}} | blocks
    recipe, division = Recipe.model_validate(blocks), Division(Way(way), ranks=8, processes=8)
    assert division.shards == (1 if way is None else 8)
    if said is None:
        check_division(recipe, division)
        return
    with pytest.raises(ConfigError, match=re.escape(said)) as refused:
        check_division(recipe, division)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("config", [None, "fsdp2", "zero3"])
def test_accelerate_s_own_launcher_understands_every_launch(config, monkeypatch, tmp_path):
    """Its arguments go through its parser and its checks; the processes themselves are not started."""
    from accelerate.commands import launch as accelerate
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)  # so that it is found where it is not installed
    seen = []
    for name in ("multi_gpu_launcher", "deepspeed_launcher"):
        monkeypatch.setattr(accelerate, name, lambda given, name=name: seen.append((name, given)))
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(launching, "cores", lambda: 8)
    fields = {"machines": 2, "machine_rank": 1, "main_address": "first", "main_port": 29500}
    launch = plan(cards=4, config=config, **fields)
    assert launch.way.name == {"fsdp2": "FSDP", "zero3": "DEEPSPEED"}.get(config)
    assert division_of(launch).processes == 8
    assert division_of(launch).readers == (1 if config == "zero3" else 4)
    assert launch.way.offloads == (config == "zero3")
    assert run_launch(launch, ["train", "recipe.yaml", "seed=1"]) == 0
    ((name, given),) = seen
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert name == ("deepspeed_launcher" if config == "zero3" else "multi_gpu_launcher")
    assert (given.num_processes, given.num_machines, given.machine_rank) == (8, 2, 1)
    assert (given.main_process_ip, given.main_process_port) == ("first", 29500)
    assert given.use_fsdp == (config == "fsdp2")
    if config == "zero3":
        _, told = prepare_deepspeed_cmd_env(given)
        assert told["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
        assert given.deepspeed_multinode_launcher == "standard", "each machine starts its own processes"
    assert [given.training_script, *given.training_script_args] == [
        "sandbox_rl",
        *("train", "recipe.yaml", "seed=1"),
    ]


def test_the_exit_code_is_that_of_the_process_that_failed(tmp_path):
    """A user's mistake in a process stays one, and nothing of torch's is printed about it."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"data": {"sources": [{"type": "table", "path": "missing.jsonl"}]}}))
    code = (
        "import sys; from tests import prepared; prepared.for_launchers()\n"
        "from sandbox_rl.cli import main; main(sys.argv[1:])"
    )
    done = prepared.run([sys.executable, "-c", code, "train", str(recipe), "launch.processes=2"])
    assert done.returncode == 2, done.stderr
    assert "starting 2 processes" in done.stdout + done.stderr
    assert done.stderr.count("Error: ") == 1
    assert "missing.jsonl" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_process_waits_for_the_others_as_long_as_the_run_says():
    """Whoever asks accelerate first decides it for good; torch's own ten minutes end a long rollout."""
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from sandbox_rl.training.agreement import join; join(123)\n"
        "from trl import GRPOConfig; GRPOConfig('unused', ddp_timeout=55, use_cpu=True)\n"
        "import torch, torch.distributed as d\n"
        "print(d.group.WORLD._get_backend(torch.device('cpu')).options._timeout.total_seconds())"
    )
    places = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    done = prepared.run([sys.executable, "-c", code], env=os.environ | places)
    assert done.stdout.split()[-1] == "123.0"


def test_the_slurm_template_gives_each_machine_its_place(tmp_path):
    """The script itself, with Slurm's commands and ours replaced by ones that say what they were told."""
    tools = {
        "scontrol": "printf 'first\\nsecond\\n'",
        "srun": "cpus=${2#*=}; shift 2; "
        'for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" cpus=$cpus; done',
        "sandbox-rl": 'printf "%s\\n" "$*"',
    }
    for name, body in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    given = {
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": "77",
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "64",
    }
    done = subprocess.run(
        ["bash", str(ROOT / "configs" / "slurm" / "train.sbatch"), "my recipe.yaml", "launch.config=fsdp2"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | given | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for rank, line in enumerate(lines):
        assert line.startswith("train my recipe.yaml launch.config=fsdp2 ")
        fields = dict(word.removeprefix("launch.").split("=") for word in line.split() if "=" in word)
        assert fields.pop("cpus") == "64", "of a machine's processors a task would have one"
        launch = plan(
            cards=8, environment={"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}, **fields
        )
        assert launch is not None
        assert (launch.each, launch.settings.machines, launch.settings.machine_rank) == (8, 2, rank)
        assert launch.settings.main_address == "first"
