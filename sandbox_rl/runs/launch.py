"""All cards by one command: it starts accelerate's processes itself, as a recipe's `launch:` says."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psutil

from sandbox_rl.config.recipe import LaunchSettings, Recipe
from sandbox_rl.display import quieted
from sandbox_rl.errors import ConfigError
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.processors import cores
from sandbox_rl.registry import shipped
from sandbox_rl.runs.division import Division, Way, division_here, way_here, way_of
from sandbox_rl.training.agreement import started_among
from sandbox_rl.training.stopping import LAUNCHER

CONFIGS = "configs/accelerate"
_TASKS = {
    "SLURM_STEP_NUM_TASKS": "srun --ntasks=1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "mpirun -n 1",
    "MPI_LOCALNRANKS": "mpirun -n 1",
}
"""What says how many tasks a scheduler or MPI has started with this one, and how to start one; Slurm counts
those of a step on all of its machines (`SLURM_STEP_NUM_NODES`), the others those of this machine."""


@dataclass(frozen=True, slots=True)
class Launch:
    """Processes to start.

    Args:
        each: on this machine.
        config: of accelerate.
        way: how it divides the model.
    """

    each: int
    settings: LaunchSettings
    config: Path | None
    way: Way = field(default_factory=Way)

    def __str__(self) -> str:
        machines = self.settings.machines
        where = f" on each of {machines} machines" if machines > 1 else ""
        how = f", {self.config.name}" if self.config else ""
        return f"{self.each} process{'' if self.each == 1 else 'es'}{where}{how}"

    @property
    def division(self) -> Division:
        """Of the processes that it starts."""
        return Division(self.way, self.each, self.each * self.settings.machines)

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
        # What a configuration for one card says would start one process, which would start others again.
        return [*given, "--multi_gpu"] if self.way.name is None else given


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
        each = policy.cards_each  # half of the cards, by whole servers
        serving = max(1, cards // 2 // each) * each if policy.servers == "auto" else policy.servers * each
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
    config = None if settings.config is None else _config(settings.config)
    way = way_asked(settings)
    world = started_among(environment)
    if world is not None:
        _check_started(settings, way, world, environment)
        return None
    _check_alone(cards, environment)
    if cards == 0 and way.name is not None:
        raise ConfigError(
            f"launch.config: {settings.config!r} divides a model over CUDA cards, but there is none here; "
            "leave it out, or see `nvidia-smi` and CUDA_VISIBLE_DEVICES"
        )
    if way.name == "DEEPSPEED" and find_spec("deepspeed") is None:
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
    # One process has nothing to divide, but its optimizer can be in the host's memory.
    return Launch(each, settings, config, way) if each * settings.machines > 1 or way.offloads else None


def _check_started(settings: LaunchSettings, way: Way, world: int, environment: Mapping[str, str]) -> None:
    """Refuse settings that the launcher of this process has not followed."""
    if settings.processes != "auto" and settings.processes * settings.machines != world:
        raise ConfigError(
            f"launch.processes: {settings.processes}, but a launcher has started this as one of {world} "
            "processes; start it without a launcher, or leave launch.processes out"
        )
    here = way_here(environment)
    if way.name is not None and way.name != here.name and (world > 1 or way.offloads):
        said = "with the whole model on each process" if here.name is None else f"by {here.name}"
        raise ConfigError(
            f"launch.config: {settings.config!r} is {way.name}, but a launcher has started this {said}; "
            "start it without a launcher, or set launch.config=null"
        )


def _check_alone(cards: int, environment: Mapping[str, str]) -> None:
    """Refuse to be one of several tasks that would each take all cards of this machine."""
    for name, one in _TASKS.items():
        tasks = environment.get(name, "")
        machines = environment.get("SLURM_STEP_NUM_NODES", "") if name.startswith("SLURM") else ""
        several = tasks.isdecimal() and int(tasks) > (int(machines) if machines.isdecimal() else 1)
        if cards > 1 and several:
            raise ConfigError(
                f"environment: {name}={tasks}, so this is one of several tasks on a machine, and each would "
                f"start on all {cards} cards, expected one task on each machine: it starts a process for "
                f"each card; write `{one} sandbox-rl train …` (for several machines see "
                f"docs/several_gpus.md), or `unset {name}` where no other task sees these cards"
            )


def way_asked(settings: LaunchSettings) -> Way:
    """In which several processes would divide the model, by the settings.

    Raises:
        ConfigError: they name no configuration, or one that cannot be used.
    """
    return Way() if settings.config is None else way_of(_config(settings.config))


def division_of(launch: Launch | None) -> Division:
    """Of the processes that a launch would start; for None, of those that there are."""
    return division_here() if launch is None else launch.division


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
