"""The Docker SDK, kept to this file: a few blocking calls on an engine."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sandbox_rl.errors import SandboxFault, SetupError
from sandbox_rl.sandboxes.docker.transport import (
    KEY_FILES,
    EngineAddress,
    attach,
    find_engine,
    until_gone,
)
from sandbox_rl.sandboxes.docker.transport_ssh import ForwardedSocket
from sandbox_rl.sandboxes.protocol import AgentChannel

CALL_TIMEOUT_S = 60
CONNECTIONS = 64
TRIAL_TIMEOUT_S = 30
FIRST_VERSION = "1.24"  # of the API, to ask for the engine's own; no engine that works here is as old
START_ENGINE = "start it, or set DOCKER_HOST to the engine's address"


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says about itself; `limits` names what its kernel can bound."""

    version: str
    limits: frozenset[str]
    runtimes: frozenset[str]


class DockerEngine:
    """A connection to one engine, for use from several threads.

    Args:
        host: its address ("" takes DOCKER_HOST, else the local socket).
        tls: directory with the keys for an address by tcp://; by default as the docker command does.

    Raises:
        ConfigError: the address or the keys are none.
        SetupError: the SDK is not installed, or no engine answers.
    """

    def __init__(self, host: str = "", tls: Path | None = None) -> None:
        try:
            import docker
            import requests.exceptions
        except ImportError:
            raise SetupError("sandbox: the docker backend needs `pip install 'sandbox-rl[docker]'`") from None
        self._errors = (docker.errors.DockerException, requests.exceptions.RequestException, OSError)
        self._missing = docker.errors.NotFound
        self.address = find_engine(host, tls)
        self._context = self.address.tls()
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._forward = ForwardedSocket(self.address.ssh) if self.address.ssh else None
        if self._forward is not None:
            self.address = replace(self.address, socket=self._forward.path)
        try:
            with contextlib.closing(self._client(docker.APIClient, FIRST_VERSION)) as first:
                said = first.version(api_version=False)
            self.podman = any("podman" in str(part).lower() for part in said.get("Components") or ())
            self._api: Any = self._client(docker.APIClient, str(said["ApiVersion"]))
        except self._errors as error:
            if self._forward is not None:
                self._forward.close()
            raise SetupError(
                f"sandbox: no Docker engine at {self.address.shown} ({_line(error)}); {START_ENGINE}"
            ) from None

    def _client(self, make: Any, version: str) -> Any:
        """A client that speaks this version of the API.

        The environment is out of it: with REQUESTS_CA_BUNDLE set, `requests` prefers that to the
        authority of the engine's keys, and our own streams take no proxy either.
        """
        client = make(
            base_url=self.address.url,
            tls=_sdk_tls(self.address) or False,
            version=version,
            timeout=CALL_TIMEOUT_S,
            max_pool_size=CONNECTIONS,
        )
        client.trust_env = False
        return client

    def facts(self) -> EngineFacts:
        """Version and abilities. Raises SandboxFault when the engine does not answer."""
        info = self._call("info")
        bounded = {"MemoryLimit": "memory", "PidsLimit": "pids", "CpuCfsQuota": "cpu"}
        return EngineFacts(
            version=str(info.get("ServerVersion", "")),
            limits=frozenset(name for key, name in bounded.items() if info.get(key)),
            runtimes=frozenset(info.get("Runtimes") or ()),
        )

    def file_for_engine(self, content: str) -> str:
        """Path of a file with this content, as long as the connection lasts; "" if the engine is elsewhere.

        Written once: what is asked for later is the first content.
        """
        if not self.local:
            return ""
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="sandbox-rl-")
            Path(self._directory.name, "file").write_text(content)
        return str(Path(self._directory.name, "file"))

    def image(self, image: str) -> tuple[str, frozenset[str]]:
        """(id, id and repository digests), each "sha256:…", of an image of the engine; ("", none) without."""
        try:
            found = self._api.inspect_image(image)
        except self._missing:
            return "", frozenset()
        except self._errors as error:
            raise SandboxFault(f"the Docker engine at {self.address.shown} failed: {error}") from None
        repositories = (name.rpartition("@")[2] for name in found.get("RepoDigests") or ())
        identity = str(found["Id"])
        identity = identity if identity.startswith("sha256:") else f"sha256:{identity}"
        return identity, frozenset({identity, *repositories})

    def create(self, name: str | None, *, host: Mapping[str, Any], container: Mapping[str, Any]) -> str:
        """A container that has not been started; `host` and `container` as the SDK names them."""
        made = self._call(
            "create_container", name=name, host_config=self._api.create_host_config(**host), **container
        )
        return str(made["Id"])

    async def attach(self, container: str, channel: AgentChannel) -> asyncio.Transport:
        return await attach(self.address, self._context, self._api.api_version, container, channel)

    async def until_gone(self) -> None:
        """Returns once the engine has ended, or the way to it has. Raises OSError, TimeoutError if it has."""
        await until_gone(self.address, self._context, self._api.api_version)

    @property
    def local(self) -> bool:
        """Whether its processes are this machine's, as far as the address tells."""
        return bool(self.address.socket) and not self.address.ssh

    @property
    def breaks(self) -> int:
        """How often the way to it has been found broken, and with it every stream."""
        return self._forward.breaks if self._forward is not None else 0

    def start(self, container: str) -> None:
        self._call("start", container)

    def process_id(self, container: str) -> int:
        """Of its first process, on the engine's machine."""
        return int(self._call("inspect_container", container)["State"]["Pid"])

    def remove(self, container: str) -> None:
        """Kill and remove it, and wait until it is gone; one that is gone already is no error.

        An engine refuses (409) to remove what it removes already, such as a container that ended by itself.

        Raises:
            SandboxFault: the engine does not answer, or its own removal does not end.
        """
        try:
            try:
                self._api.remove_container(container, force=True, v=True)
            except self._errors as error:
                if getattr(getattr(error, "response", None), "status_code", 0) != 409:
                    raise
                ended = self._api.wait(container, timeout=CALL_TIMEOUT_S, condition="removed")
                if failed := ended.get("Error"):
                    raise SandboxFault(
                        f"the Docker engine at {self.address.shown} failed: {failed}"
                    ) from None
        except self._missing:
            return
        except self._errors as error:
            raise SandboxFault(f"the Docker engine at {self.address.shown} failed: {error}") from None

    def labelled(self, label: str) -> list[tuple[str, dict[str, str]]]:
        """(id, labels) of every container with this label, running or not."""
        rows = self._call("containers", all=True, filters={"label": label})
        return [(str(row["Id"]), dict(row.get("Labels") or {})) for row in rows]

    def architecture(self, image: str) -> str:
        """The processor that an image is for, as Go names it: amd64, arm64."""
        return str(self._call("inspect_image", image).get("Architecture") or "unknown")

    def tag(self, image: str, name: str) -> None:
        repository, _, tag = name.rpartition(":")
        self._call("tag", image, repository, tag)

    def exit_code(self, image: str, *, host: Mapping[str, Any], container: Mapping[str, Any]) -> int | None:
        """Of a container that is made, run and removed; None if it cannot be started."""
        kept = {**host, "auto_remove": False}
        made = self.create(None, host=kept, container={**container, "image": image})
        try:
            self._api.start(made)
            return int(self._api.wait(made, timeout=TRIAL_TIMEOUT_S)["StatusCode"])
        except self._errors:
            return None
        finally:
            self.remove(made)

    def build(self, directory: Path, tag: str, arguments: Mapping[str, str] | None = None) -> str:
        """Build the Dockerfile of `directory` with these build arguments; returns the image's id.

        Raises:
            SetupError: a step of it failed.
        """
        options = {"path": str(directory), "buildargs": dict(arguments or {})}
        try:
            self._said("build", **options, tag=tag, rm=True, decode=True)
        except SetupError as error:
            raise SetupError(f"{directory / 'Dockerfile'}: {error}") from None
        return self.image(tag)[0]

    def build_archive(self, archive: bytes, tag: str) -> str:
        """Build what a tar archive holds; returns the image's id.

        Raises:
            SetupError: a step of it failed.
        """
        file = io.BytesIO(archive)
        self._said("build", fileobj=file, custom_context=True, tag=tag, rm=True, decode=True)
        return self.image(tag)[0]

    def load(self, archive: Path) -> str:
        """Load what `docker save` wrote; returns the id of its last image.

        Raises:
            SetupError: it holds none.
        """
        try:
            with archive.open("rb") as file:
                said = self._said("load_image", file)
        except (SetupError, OSError) as error:
            raise SetupError(f"{archive}: {error}; expected an archive written by `docker save`") from None
        names = re.findall(r"Loaded image(?: ID)?: (\S+)", said)
        if not names:
            raise SetupError(f"{archive}: holds no image; expected an archive written by `docker save`")
        return self.image(names[-1])[0]

    def _said(self, method: str, *args: Any, **kwargs: Any) -> str:
        """Everything that the engine says while it works."""
        try:
            rows = list(getattr(self._api, method)(*args, **kwargs))
        except self._errors as error:
            raise SetupError(f"the Docker engine at {self.address.shown} failed: {_line(error)}") from None
        for row in rows:
            if "error" in row:
                raise SetupError(f"the Docker engine at {self.address.shown} failed: {_line(row['error'])}")
        return "".join(str(row.get("stream", "")) for row in rows)

    def close(self) -> None:
        with contextlib.suppress(*self._errors):
            self._api.close()
        if self._forward is not None:
            self._forward.close()
        if self._directory is not None:
            self._directory.cleanup()

    def _call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self._api, method)(*args, **kwargs)
        except self._errors as error:
            raise SandboxFault(f"the Docker engine at {self.address.shown} failed: {error}") from None


def _sdk_tls(address: EngineAddress) -> Any:
    """The SDK's form of an address's keys."""
    if address.keys is None:
        return None
    from docker.tls import TLSConfig

    ca, cert, key = (str(address.keys / name) for name in KEY_FILES)
    return TLSConfig(client_cert=(cert, key), ca_cert=ca, verify=address.verify)


def _line(error: object) -> str:
    return " ".join(str(error).split())
