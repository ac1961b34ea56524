"""The `launch:` block of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sandbox_rl.settings import Settings

__all__ = ["LaunchSettings"]


class LaunchSettings(Settings):
    """Which processes train together; not read below `accelerate launch -m sandbox_rl train`."""

    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """On each machine; `auto`: one for each CUDA card that is to be seen and that no server is to have for
    itself (`policy.placement`), or one."""
    config: str | None = None
    """What accelerate is told besides: the name of a file in `configs/accelerate`, such as `fsdp2` or
    `zero3`, which divide the model, or a path relative to the working directory."""
    machines: int = Field(1, ge=1)
    """Each runs the same command with its own `machine_rank`."""
    machine_rank: int = Field(0, ge=0)
    """Number of this machine."""
    main_address: str | None = None
    """Host name or address of machine 0, where there are several."""
    main_port: int = Field(0, ge=0, lt=2**16)
    """0: any that is free; several machines need to be told one."""
