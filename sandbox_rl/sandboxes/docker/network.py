"""The network of containers that have one: a proxy of this process; its listener comes over a unix socket."""

from __future__ import annotations

from typing import Any

from sandbox_rl.errors import SandboxFault, SetupError
from sandbox_rl.sandboxes.config import DockerSettings
from sandbox_rl.sandboxes.egress.capacity import SharedCapacity
from sandbox_rl.sandboxes.egress.listener import HANDOVER_IN_CONTAINER, HandoverDirectory, HandoverSocket
from sandbox_rl.sandboxes.egress.proxy import FilteringProxy, announce, proxy_environment
from sandbox_rl.sandboxes.egress.rules import NetworkRules

__all__ = ["ContainerNetwork", "ContainerProxy"]


class ContainerProxy:
    """Of one container. The container itself has no network but its own loopback.

    Raises:
        SandboxFault: it cannot be made.
    """

    def __init__(
        self,
        name: str,
        handovers: HandoverDirectory,
        rules: NetworkRules,
        settings: DockerSettings,
        capacity: SharedCapacity,
    ) -> None:
        self._name = name
        self._capacity = capacity
        self._rules = rules
        self._limits = settings.network_limits
        self._proxy: FilteringProxy | None = None
        try:
            self._handover: HandoverSocket = handovers.socket(name)
        except OSError as error:
            raise SandboxFault(f"the socket of the egress proxy cannot be made: {error}") from error

    def into(self, host: dict[str, Any], container: dict[str, Any]) -> None:
        """Show the socket in the container, and tell the agent of it."""
        host["binds"] = [*host["binds"], f"{self._handover.path}:{HANDOVER_IN_CONTAINER}"]
        container["command"] = [*container["command"], f"={HANDOVER_IN_CONTAINER}"]

    async def open(self) -> None:
        """Serve the agent's listener; before any command runs. Raises SandboxDead."""
        listener = await self._handover.listener()
        self._proxy = FilteringProxy(self._name, listener, self._rules, self._limits, self._capacity)
        self._proxy.start()

    def close(self) -> None:
        """End it; idempotent."""
        self._handover.close()
        if self._proxy is not None:
            self._proxy.close()


class ContainerNetwork:
    """Of one backend.

    Raises:
        SetupError: the engine cannot show a socket of this machine to its containers.
    """

    def __init__(self, rules: NetworkRules, settings: DockerSettings, *, local: bool) -> None:
        self._rules = rules
        self._handovers: HandoverDirectory | None = None
        self._capacity = SharedCapacity()
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
        self._handovers = HandoverDirectory()

    def proxy_for(self, name: str) -> ContainerProxy | None:
        """For the container `name`; None where there is no network."""
        return (
            ContainerProxy(name, self._handovers, self._rules, self.settings, self._capacity)
            if self._handovers
            else None
        )

    def close(self) -> None:
        """Remove what is shared."""
        if self._handovers is not None:
            self._handovers.close()
