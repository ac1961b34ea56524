"""The Docker SDK, kept to this file: a few blocking calls on an engine."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_rl.errors import SandboxFault, SetupError

__all__ = ["DockerEngine", "EngineFacts"]

CALL_TIMEOUT_S = 60
CONNECTIONS = 64
START_ENGINE = "start it, or set DOCKER_HOST to the engine's address"


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says about itself; `limits` names what its kernel can bound."""

    name: str
    version: str
    limits: frozenset[str]
    runtimes: frozenset[str]


class DockerEngine:
    """A connection to one engine, for use from several threads.

    Args:
        host: its address ("" takes DOCKER_HOST, else the local socket).

    Raises:
        SetupError: the SDK is not installed, or no engine answers.
    """

    def __init__(self, host: str = "") -> None:
        try:
            import docker
            import requests.exceptions
        except ImportError:
            raise SetupError("sandbox: the docker backend needs `pip install 'sandbox-rl[docker]'`") from None
        self._errors = (docker.errors.DockerException, requests.exceptions.RequestException, OSError)
        self._missing = docker.errors.NotFound
        self._shown = host or os.environ.get("DOCKER_HOST", "") or "the local socket"
        try:
            arguments = {"base_url": host} if host else docker.utils.kwargs_from_env()
            self._api: Any = docker.APIClient(
                **arguments, version="auto", timeout=CALL_TIMEOUT_S, max_pool_size=CONNECTIONS
            )
        except self._errors as error:
            raise SetupError(
                f"sandbox: no Docker engine at {self._shown} ({error}); {START_ENGINE}"
            ) from None
        if self._api.base_url.startswith(("https:", "http+docker://ssh")):
            self._api.close()
            raise SetupError(
                f"sandbox: the engine at {self._shown} is reached over TLS or ssh, which the docker backend "
                "cannot stream over; forward its socket (ssh -L) and name that by unix://"
            )

    def facts(self) -> EngineFacts:
        """Version and abilities. Raises SandboxFault when the engine does not answer."""
        info = self._call("info")
        bounded = {"MemoryLimit": "memory", "PidsLimit": "pids", "CpuCfsQuota": "cpu"}
        return EngineFacts(
            name="podman" if "podman" in str(info.get("ServerVersion", "")).lower() else "docker",
            version=str(info.get("ServerVersion", "")),
            limits=frozenset(name for key, name in bounded.items() if info.get(key)),
            runtimes=frozenset(info.get("Runtimes") or ()),
        )

    def image_digests(self, image: str) -> frozenset[str]:
        """Id and repository digests ("sha256:…") of an image of the engine; empty when there is none."""
        try:
            found = self._api.inspect_image(image)
        except self._missing:
            return frozenset()
        except self._errors as error:
            raise SandboxFault(f"the Docker engine at {self._shown} failed: {error}") from None
        repositories = (name.rpartition("@")[2] for name in found.get("RepoDigests") or ())
        return frozenset({str(found["Id"]), *repositories})

    def create(self, name: str, *, host: Mapping[str, Any], container: Mapping[str, Any]) -> str:
        """A container that has not been started; `host` and `container` as the SDK names them."""
        made = self._call(
            "create_container", name=name, host_config=self._api.create_host_config(**host), **container
        )
        return str(made["Id"])

    def attach(self, container: str) -> socket.socket:
        """A stream to standard input and from the outputs of a container that has not been started.

        The engine puts eight bytes before each piece of output.
        """
        stream = self._call("attach_socket", container, params={"stdin": 1, "stdout": 1, "stream": 1})
        try:
            return socket.socket(fileno=os.dup(stream.fileno()))
        finally:
            # The SDK leaves three owners of the connection behind, and closes none of them.
            for owner in (getattr(stream, "_response", None), getattr(stream, "_sock", None), stream):
                if owner is not None:
                    owner.close()

    def start(self, container: str) -> None:
        """Start it."""
        self._call("start", container)

    def process_id(self, container: str) -> int:
        """Of its first process, on the engine's machine."""
        return int(self._call("inspect_container", container)["State"]["Pid"])

    def remove(self, container: str) -> None:
        """Kill and remove it; one that is gone already, or going, is no error."""
        try:
            self._api.remove_container(container, force=True, v=True)
        except self._missing:
            return
        except self._errors as error:
            if getattr(getattr(error, "response", None), "status_code", 0) != 409:  # its removal goes on
                raise SandboxFault(f"the Docker engine at {self._shown} failed: {error}") from None

    def labelled(self, label: str) -> list[tuple[str, dict[str, str]]]:
        """(id, labels) of every container with this label, running or not."""
        rows = self._call("containers", all=True, filters={"label": label})
        return [(str(row["Id"]), dict(row.get("Labels") or {})) for row in rows]

    def build(self, directory: Path, tag: str) -> str:
        """Build the Dockerfile of `directory`; returns the image's id.

        Raises:
            SetupError: a step of it failed.
        """
        self._said("build", path=str(directory), tag=tag, rm=True, decode=True)
        return self._image_id(tag)

    def load(self, archive: Path) -> str:
        """Load what `docker save` wrote; returns the id of its last image.

        Raises:
            SetupError: it holds none.
        """
        with archive.open("rb") as file:
            said = self._said("load_image", file)
        names = re.findall(r"Loaded image(?: ID)?: (\S+)", said)
        if not names:
            raise SetupError(f"{archive}: holds no image; expected an archive written by `docker save`")
        return self._image_id(names[-1])

    def _said(self, method: str, *args: Any, **kwargs: Any) -> str:
        """Everything that the engine says while it works."""
        try:
            rows = list(getattr(self._api, method)(*args, **kwargs))
        except self._errors as error:
            raise SetupError(f"the Docker engine at {self._shown} failed: {error}") from None
        for row in rows:
            if "error" in row:
                raise SetupError(f"the Docker engine at {self._shown} failed: {row['error']}")
        return "".join(str(row.get("stream", "")) for row in rows)

    def _image_id(self, name: str) -> str:
        return str(self._call("inspect_image", name)["Id"])

    def close(self) -> None:
        """Drop the connections."""
        with contextlib.suppress(*self._errors):
            self._api.close()

    def _call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self._api, method)(*args, **kwargs)
        except self._errors as error:
            raise SandboxFault(f"the Docker engine at {self._shown} failed: {error}") from None
