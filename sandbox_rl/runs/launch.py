"""All cards by one command: it starts accelerate's processes itself, as a recipe's `launch:` says.

And how the processes of a run divide its model, and what does not go with that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
from accelerate import PartialState

from sandbox_rl.config.recipe import LaunchSettings, Recipe
from sandbox_rl.display import quieted
from sandbox_rl.errors import ConfigError
from sandbox_rl.policies.config import TransformersSettings, VLLMSettings
from sandbox_rl.processors import cores
from sandbox_rl.registry import shipped
from sandbox_rl.training.stopping import LAUNCHER

CONFIGS = "configs/accelerate"
STARTED = "WORLD_SIZE"
"""Of the environment that any launcher gives to its processes."""


@dataclass(frozen=True, slots=True)
class Launch:
    """Processes to start.

    Args:
        each: on this machine.
        config: of accelerate.
    """

    each: int
    settings: LaunchSettings
    config: Path | None

    def __str__(self) -> str:
        machines = self.settings.machines
        where = f" on each of {machines} machines" if machines > 1 else ""
        how = f", {self.config.name}" if self.config else ""
        return f"{self.each} processes{where}{how}"

    @property
    def way(self) -> str | None:
        """How they divide the model, `FSDP` or `DEEPSPEED`; None where each holds all of it."""
        return None if self.config is None else _way(self.config)

    @property
    def offloads(self) -> bool:
        """Whether DeepSpeed keeps the optimizer in the host's memory."""
        return self.config is not None and "offload_optimizer_device: cpu" in self.config.read_text()

    def arguments(self) -> list[str]:
        """For accelerate's launcher."""
        s = self.settings
        given = ["--num_processes", str(self.each * s.machines), "--num_machines", str(s.machines)]
        given += ["--machine_rank", str(s.machine_rank), "--main_process_port", str(s.main_port)]
        if s.main_address is not None:
            given += ["--main_process_ip", s.main_address]
        # On several machines each has this command; else machine 0 would start the others by pdsh.
        given += ["--deepspeed_multinode_launcher", "standard"]
        # Without a file it would read the one that this user may have made for other programs.
        given += ["--config_file", str(self.config or shipped(f"{CONFIGS}/one_gpu.yaml"))]
        return [*given, "--multi_gpu"] if self.config is None else given


def cards_here() -> int:
    """CUDA cards that this process sees; it does not begin to use one."""
    import torch

    return torch.cuda.device_count()


def cards_that_train(recipe: Recipe, cards: int) -> int:
    """How many of a machine's cards train where nobody says it (`launch.processes`): those that no server has
    for itself."""
    policy = recipe.policy
    if not isinstance(policy, VLLMSettings) or policy.engine == "external" or cards < 2:
        return cards
    if policy.placement == "one":
        return 1
    if by_hand := policy.environment.get("CUDA_VISIBLE_DEVICES"):
        return max(1, cards - len(by_hand.split(",")))
    # Servers that cannot sleep while others train need cards of their own.
    if policy.placement == "split" or (policy.placement == "auto" and recipe.mode == "async"):
        serving = cards // 2 if policy.servers == "auto" else policy.servers * policy.cards_each
        return max(1, cards - serving)
    return cards


def plan_launch(
    settings: LaunchSettings, *, cards: int, training: int, environment: Mapping[str, str]
) -> Launch | None:
    """What is to be started; None where this process is the whole run, or one of a launcher's already.

    Args:
        cards: of this machine.
        training: of them, where the settings leave it open (`cards_that_train`).

    Raises:
        ConfigError: it cannot be started.
    """
    asked = None if settings.processes == "auto" else settings.processes
    if (world := environment.get(STARTED)) is not None:
        if asked is not None and str(asked * settings.machines) != world:
            raise ConfigError(
                f"launch.processes: {asked}, but a launcher has started this as one of {world} processes; "
                "start it without a launcher, or leave launch.processes out"
            )
        return None
    config = None if settings.config is None else _config(settings.config)
    if cards == 0 and config is not None:
        raise ConfigError(
            f"launch.config: {settings.config!r} divides a model over CUDA cards, but there is none here; "
            "leave it out, or see `nvidia-smi` and CUDA_VISIBLE_DEVICES"
        )
    if config is not None and _way(config) == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise ConfigError(
            f"launch.config: {settings.config!r} needs DeepSpeed, which is not installed; pip install "
            "'sandbox-rl[deepspeed]', or set launch.config=fsdp2"
        )
    if asked is not None and 0 < cards < asked:
        raise ConfigError(
            f"launch.processes: {asked}, but {cards} CUDA card{'s are' if cards > 1 else ' is'} to be seen, "
            f"expected one for each process; set launch.processes={cards}, or `auto`"
        )
    if settings.machines > 1 and (settings.main_address is None or not settings.main_port):
        raise ConfigError(
            f"launch.machines: {settings.machines} without launch.main_address and main_port, expected the "
            "address of machine 0 and a free port of it, the same on all"
        )
    if settings.machine_rank >= settings.machines:
        raise ConfigError(
            f"launch.machine_rank: {settings.machine_rank}, expected below launch.machines "
            f"({settings.machines})"
        )
    each = asked or max(1, training)
    return Launch(each, settings, config) if each * settings.machines > 1 else None


@dataclass(frozen=True, slots=True)
class Division:
    """The processes that train.

    Args:
        way: `FSDP` or `DEEPSPEED`; None where each holds the whole model.
        ranks: on each machine.
        processes: on all of them.
        offloads: whether the optimizer is in the machines' own memory.
    """

    way: str | None
    ranks: int
    processes: int
    offloads: bool = False

    @property
    def shards(self) -> int:
        """Processes that the weights are divided over."""
        return 1 if self.way is None else self.processes


def division_of(launch: Launch | None) -> Division:
    """Of the processes that a launch would start; for None, of those that there are."""
    if launch is not None:
        processes = launch.each * launch.settings.machines
        return Division(launch.way, launch.each, processes, launch.offloads)
    processes = PartialState().num_processes
    found = [way for way in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{way}") == "true"]
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    offloads = os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none") != "none"
    return Division(found[0] if found else None, ranks, processes, offloads)


def check_division(recipe: Recipe, division: Division) -> None:
    """Refuse what cannot work with a divided model.

    Raises:
        ConfigError: the policy samples from the model itself, or updates take several passes under DeepSpeed.
    """
    if division.way is None:
        return
    if isinstance(recipe.policy, TransformersSettings):
        raise ConfigError(
            f"policy.type: 'transformers', but {division.processes} processes divide the model "
            f"({division.way}), and none can sample from it alone; set policy.type=vllm, or leave "
            "launch.config out"
        )
    if division.way == "DEEPSPEED" and recipe.mode == "async":
        raise ConfigError(
            "mode: 'async' computes an update in several passes, and DeepSpeed would step after each; set "
            "launch.config=fsdp2, or mode=sync"
        )
    if division.way == "DEEPSPEED" and recipe.update.micro_batch_tokens is not None:
        raise ConfigError(
            f"update.micro_batch_tokens: {recipe.update.micro_batch_tokens}, expected none with DeepSpeed, "
            "which would step after each part; lower grpo.per_device_train_batch_size, or set "
            "launch.config=fsdp2"
        )


def run_launch(launch: Launch, arguments: Sequence[str], *, module: str = "sandbox_rl") -> int:
    """Run `python -m MODULE ARGUMENTS` in every process; returns the exit code of the first that failed.

    Signals go to all processes, which save and end by themselves; torch would kill them after half a minute.
    """
    from accelerate.commands import launch as accelerate
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // launch.each)))
    os.environ[LAUNCHER] = str(os.getpid())
    parser = accelerate.launch_command_parser()
    given = parser.parse_args([*launch.arguments(), "-m", module, *arguments])
    given.signals_to_handle = "SIGQUIT"  # of torch
    # Processes say themselves what is wrong; torch would report each as a failure of its own.
    quiet = quieted("torch.distributed.elastic", logging.CRITICAL)
    with quiet, _handing_on(signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        try:
            accelerate.launch_command(given)
        except ChildFailedError as failed:
            code = failed.get_first_failure()[1].exitcode
            return int(code) if code > 0 else 128 - code
    return 0


def _config(name: str) -> Path:
    own = shipped(f"{CONFIGS}/{name}.yaml")
    path = own if own.is_file() else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in shipped(CONFIGS).glob("*.yaml")))
        raise ConfigError(
            f"launch.config: {name!r}, expected one of {known}, or an existing file of accelerate's"
        )
    return path


def _way(config: Path) -> str | None:
    text = config.read_text()
    return next((way for way in ("FSDP", "DEEPSPEED") if f"distributed_type: {way}" in text), None)


@contextlib.contextmanager
def _handing_on(*signals: signal.Signals) -> Iterator[None]:
    """Give the processes that were started whatever signal comes."""

    def hand_on(number: int, frame: object) -> None:
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
