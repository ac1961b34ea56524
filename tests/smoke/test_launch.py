"""Several processes, as far as a CPU can show them, and the launch configurations that are shipped."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from tests import prepared

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "configs" / "accelerate").glob("*.yaml"))


def in_two_processes(module: str, *arguments: str | Path) -> list[str]:
    """The lines that a module of this folder prints when two processes of one group run it."""
    processes = prepared.ranks(2, f"tests.smoke.{module}", *map(str, arguments))
    printed = prepared.outputs(processes)
    assert [process.returncode for process in processes] == [0, 0], printed
    return [line for text in printed for line in text.splitlines()]


def test_two_processes_share_one_model_by_fsdp2(tmp_path):
    """Log-probs, gradients in parts, gathered and exported weights of two shards are the whole model's."""
    lines = in_two_processes("sharded", tmp_path / "export")
    assert sorted(line for line in lines if line.startswith("rank")) == [
        "rank 0: as unsharded",
        "rank 1: as unsharded",
    ]


def test_two_processes_compute_their_rows_in_parts(tmp_path):
    """Under data parallelism, with rows of other lengths on each: the gradient is the whole batch's."""
    in_two_processes("data_parallel", tmp_path)
    said = [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)]
    assert said == ["2 parts", "2 parts"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_the_shipped_configurations(path):
    """Its parser refuses unknown keys; the header says how the file is used."""
    config = load_config_from_file(str(path))
    assert config.mixed_precision == "bf16"
    assert f"--config_file configs/accelerate/{path.name}" in path.read_text().partition("compute_")[0]
    if path.stem in ("fsdp2", "multi_node"):
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.num_processes == 8 * config.num_machines
    if path.stem == "zero3":
        assert config.deepspeed_config["zero_stage"] == 3
