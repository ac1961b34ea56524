"""What the processes of a run agree upon before one of them acts on it.

A process that stops, skips or fails on its own leaves the others waiting in their next exchange until that
times out. So whatever decides about the next exchange is exchanged first; every process must come here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from sandbox_rl import errors
from sandbox_rl.errors import (
    ConfigError,
    InfraFault,
    SandboxRLError,
    SetupError,
    StopAsked,
    UserError,
    environment_error,
)

T = TypeVar("T")

LONGEST_WAIT_S = 7200.0
"""How long a process waits for the others in an exchange: one can be rolling out while others are done."""

PLACE = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
"""Of the environment that any launcher gives to its processes."""
_MEETING = ("MASTER_ADDR", "MASTER_PORT")
_ALONE = ("ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION")
"""What accelerate's launcher gives to the only process that it starts, which has no place."""
_TOLD = (
    *("ACCELERATE_USE_", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_", "ACCELERATE_DEEPSPEED_"),
    *("ACCELERATE_GRADIENT_", "FSDP_"),
)
"""What begins so is how accelerate's launcher tells processes to train, and they obey whoever has set it."""


def started_among(environment: Mapping[str, str]) -> int | None:
    """How many processes a launcher has started, this one among them; None where none has.

    Raises:
        ConfigError: the environment says a part of it, as where a shell or a scheduler has left something:
            processes would wait for others that nobody starts, one would be alone and say nothing, or those
            that we start would train otherwise than the recipe says.
    """
    given = (*PLACE, *_MEETING)
    told = sorted(name for name in environment if name.startswith(_TOLD))
    said = [*(name for name in given if name in environment), *told]
    if not any(name in environment for name in PLACE):
        if not told:
            return None
        if all(name in environment for name in _ALONE):
            return 1
    fix = f"`unset {' '.join(said)}`, or start it by `accelerate launch`"
    if missing := [name for name in given if name not in environment]:
        raise ConfigError(
            f"environment: {', '.join(said)} without {', '.join(missing)}, expected all that a launcher "
            f"gives to its processes, or none; {fix}"
        )
    places = [environment[name] for name in PLACE]
    if not all(text.isdecimal() for text in places) or not int(places[1]) < int(places[0]):
        found = ", ".join(f"{name}={environment[name]!r}" for name in PLACE)
        raise ConfigError(
            f"environment: {found}, expected a number of processes and places among them, from 0 on; {fix}"
        )
    return int(places[0])


def join(wait_s: float = LONGEST_WAIT_S) -> PartialState:
    """This process among those that a launcher has started.

    To be called before anything else asks for them: whoever does first decides how long all exchanges may
    take (torch would say ten minutes on cards), and without being told accelerate sees one process on CPUs.

    Raises:
        ConfigError: as `started_among`.
    """
    started_among(os.environ)
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(seconds=wait_s))


def any_of(flag: bool) -> bool:
    """Whether it is true on any process; the same answer on all."""
    return any(gather_object([flag]))


def of_first(make: Callable[[], T]) -> T:
    """What the first process makes, on all of them; where that fails, all fail as in `together`."""
    found: list[Any] = [None]
    with together():
        if PartialState().is_main_process:
            found = [make()]
    broadcast_object_list(found)
    made: T = found[0]
    return made


@contextmanager
def together() -> Iterator[None]:
    """What raises on one process raises on all, once each has left the block. No exchange may be inside.

    Raises:
        SetupError: for an `OSError` or another failure of the environment: the disk is full, or the like.
        SandboxRLError: another process failed, by the same type where that is one of ours; see `everywhere`.
    """
    own: Exception | None = None
    try:
        yield
    except OSError as error:
        own = SetupError(f"{error}; free some space, or fix what it names")
        own.__cause__ = error
    except Exception as error:
        said = None if isinstance(error, SandboxRLError) else environment_error(error)
        own = error if said is None else SetupError(said)
        own.__cause__ = None if said is None else error
    mine = None if own is None else (type(own).__name__, str(own))
    found: list[tuple[str, str] | None] = gather_object([mine])
    failed = [(rank, *error) for rank, error in enumerate(found) if error is not None]
    if not failed:
        return
    if own is None:
        own = as_here(*failed[0], of=len(found))
    if isinstance(own, SandboxRLError):
        everywhere(own)
    raise own


def everywhere(error: SandboxRLError) -> SandboxRLError:
    """Mark an error that all processes raise at this point: the first one says it."""
    error.agreed = True
    error.said_elsewhere = not PartialState().is_main_process
    return error


def as_here(rank: int, name: str, text: str, *, of: int) -> SandboxRLError:
    """What failed on another process, as the error that is raised here.

    Args:
        rank, name, text: of the process, of the error's type, and what it says; ours keep their type.
        of: how many processes there are.
    """
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, UserError | InfraFault | StopAsked):
        return kind(f"process {rank} of {of}: {text}")
    return SandboxRLError(f"process {rank} of {of}: {name}: {text}")
