"""The network of containers that have one: a proxy of this process, and a door to it that is open once."""

from __future__ import annotations

from typing import Any

from sandbox_rl.errors import SandboxFault, SetupError
from sandbox_rl.sandboxes.config import DockerSettings
from sandbox_rl.sandboxes.egress.capacity import SharedRoom
from sandbox_rl.sandboxes.egress.listener import DOOR_IN_CONTAINER, Door, Doors
from sandbox_rl.sandboxes.egress.proxy import FilteringProxy, announce, proxy_environment
from sandbox_rl.sandboxes.egress.rules import NetworkRules

__all__ = ["ContainerNetwork", "WayOut"]


class WayOut:
    """Of one container. The container itself has no network but its own loopback.

    Raises:
        SandboxFault: it cannot be made.
    """

    def __init__(
        self, name: str, doors: Doors, rules: NetworkRules, settings: DockerSettings, room: SharedRoom
    ) -> None:
        self._name = name
        self._room = room
        self._rules = rules
        self._limits = settings.network_limits
        self._proxy: FilteringProxy | None = None
        try:
            self._door: Door = doors.door(name)
        except OSError as error:
            raise SandboxFault(f"no door to the network can be made: {error}") from error

    def into(self, host: dict[str, Any], container: dict[str, Any]) -> None:
        """Show the door in the container, and tell the agent of it."""
        host["binds"] = [*host["binds"], f"{self._door.path}:{DOOR_IN_CONTAINER}"]
        container["command"] = [*container["command"], f"={DOOR_IN_CONTAINER}"]

    async def open(self) -> None:
        """Serve the agent's listener; before any command runs. Raises SandboxDead."""
        listener = await self._door.listener()
        self._proxy = FilteringProxy(self._name, listener, self._rules, self._limits, self._room)
        self._proxy.start()

    def close(self) -> None:
        """End it; idempotent."""
        self._door.close()
        if self._proxy is not None:
            self._proxy.close()


class ContainerNetwork:
    """Of one backend.

    Raises:
        SetupError: the engine cannot show a socket of this machine to its containers.
    """

    def __init__(self, rules: NetworkRules, settings: DockerSettings, *, local: bool) -> None:
        self._rules = rules
        self._doors: Doors | None = None
        self._room = SharedRoom()
        variables = (
            proxy_environment() | settings.environment if rules.mode != "off" else settings.environment
        )
        self.settings = settings.model_copy(update={"environment": variables})
        """With the variables by which clients find the proxy."""
        if rules.mode == "off":
            return
        if not local:
            raise SetupError(
                f"sandbox.network: {rules.mode} needs an engine on this machine, as the proxy runs here; set "
                "network: off, or run where the engine is"
            )
        if settings.runtime:
            raise SetupError(
                f"sandbox.network: {rules.mode} is not supported with runtime {settings.runtime!r}; set "
                "network: off, or leave `runtime` out"
            )
        announce(rules)
        self._doors = Doors()

    def way_out(self, name: str) -> WayOut | None:
        """For the container `name`; None where there is no network."""
        return WayOut(name, self._doors, self._rules, self.settings, self._room) if self._doors else None

    def close(self) -> None:
        """Remove what is shared."""
        if self._doors is not None:
            self._doors.close()
