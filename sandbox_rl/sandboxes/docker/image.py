"""Images of an engine: checked against a digest, and fitted with an interpreter where they have none.

It is this machine's own, with all it loads, started through its own loader with its own libraries. An image
with nothing but a POSIX shell, of any C library or none, then holds sandboxes like others. Commands do not
find the interpreter by name.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sandbox_rl.errors import SetupError
from sandbox_rl.sandboxes.bundle import agent_source
from sandbox_rl.sandboxes.docker.engine import DockerEngine
from sandbox_rl.sandboxes.docker.options import GROUP, USERS

PLACE = "/.sandbox-rl"
"""Where it is put in an image."""

RUN_TIMEOUT_S = 30
DESCRIBE = """
import importlib, json, sys
for name in {names!r}:
    try:
        importlib.import_module(name)
    except ImportError:
        pass
import encodings.utf_8, encodings.ascii, encodings.latin_1, os
json.dump({{
    "files": sorted({{m.__file__ for m in sys.modules.values() if getattr(m, "__file__", None)}}),
    "library": os.path.dirname(os.__file__),
    "version": "%d.%d" % sys.version_info[:2],
}}, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class PortablePython:
    """Files to put below `PLACE` (relative path → file here) and how to run what they make up."""

    files: dict[str, Path]
    command: tuple[str, ...]
    machine: str
    digest: str

    def archive(self, dockerfile: str) -> bytes:
        """A build context: `dockerfile`, and the files below `python/`."""
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as tar:
            text = dockerfile.encode()
            entry = tarfile.TarInfo("Dockerfile")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text))
            for name, source in sorted(self.files.items()):
                data = source.read_bytes()
                entry = tarfile.TarInfo(f"python/{name}")
                entry.size, entry.mode = len(data), 0o755
                tar.addfile(entry, io.BytesIO(data))
        return content.getvalue()


@cache
def portable_python() -> PortablePython:
    """Of the Python that runs this.

    Raises:
        SetupError: what it loads cannot be found out here.
    """
    executable = Path(sys.executable).resolve()
    script = DESCRIBE.format(names=_agents_imports())
    found = json.loads(_said([str(executable), "-I", "-S", "-B", "-c", script]))
    library, version = Path(found["library"]), found["version"]
    modules = {Path(file) for file in found["files"]} | {library / "os.py"}
    files = {f"bin/python{version}": executable}
    for module in modules:
        if module.is_relative_to(library):
            files[f"lib/python{version}/{module.relative_to(library)}"] = module
    files.setdefault(f"lib/python{version}/lib-dynload/empty", Path(os.devnull))
    loader = ""
    for binary in [executable, *(module for module in modules if module.suffix == ".so")]:
        for line in _said(["ldd", str(binary)]).splitlines():
            name, _, place = line.strip().partition(" => ")
            path = (place or name).partition(" (")[0].strip()
            if path.startswith("/") and Path(path).name.startswith(("ld-", "ld64")):
                loader = path
            elif path.startswith("/"):
                files[f"lib/{Path(path).name}"] = Path(path)
    if not loader:
        raise SetupError(f"sandbox.python: {executable} is not linked as expected (ldd names no loader)")
    files["loader"] = Path(loader)
    digest = hashlib.sha256()
    for name, source in sorted(files.items()):
        digest.update(f"{name}\0".encode() + hashlib.sha256(source.read_bytes()).digest())
    command = (f"{PLACE}/loader", "--library-path", f"{PLACE}/lib", f"{PLACE}/bin/python{version}")
    return PortablePython(files, command, platform.machine(), digest.hexdigest())


def _agents_imports() -> list[str]:
    """Modules of the standard library that the agent imports, wherever in its source."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(agent_source())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return sorted(names)


def _said(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise SetupError(
            f"sandbox.python: the interpreter for the agent cannot be gathered here ({error}); use an image "
            "with Python 3.9 or newer"
        ) from None
    return done.stdout


FITTED = "sandbox-rl-fitted"
BASE = "sandbox-rl-base"
TRIAL = "import sys, resource, select; sys.exit(sys.version_info < (3, 9))"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}  # as engines and as kernels call them


def check_digest(engine: DockerEngine, image: str, wanted: str, *, key: str = "digest") -> str:
    """The id of an image, "" if there is none.

    Raises:
        SetupError: `wanted`, which `key` says, is neither its id nor a repository digest.
    """
    identity, found = engine.image(image)
    if wanted and wanted not in found:
        raise SetupError(
            f"{key}: image {image!r} has {', '.join(sorted(found)) or 'none'}, expected {wanted}; correct "
            "the digest, or fetch the image that has it"
        )
    return identity


def checked_image(engine: DockerEngine, image: str, wanted: str = "") -> str:
    """The image's id, of which containers are made whatever its tag points to later.

    Raises:
        SetupError: it is missing, or another one than was asked for.
    """
    if not check_digest(engine, image, ""):
        raise SetupError(
            f"sandbox.image: the engine has no image {image!r}; build it with `docker build -t {image} "
            f"configs/sandbox`, or fetch it with `docker pull {image}`"
        )
    return check_digest(engine, image, wanted, key="sandbox.digest")


def has_python(engine: DockerEngine, image: str, python: str, host: Mapping[str, Any]) -> bool:
    """Whether the agent's interpreter starts in a container made with these host options."""
    trial = {
        "entrypoint": [python, "-I", "-S", "-B", "-c", TRIAL],
        "command": [],
        "user": f"{USERS[0]}:{GROUP}",
    }
    return engine.exit_code(image, host=host, container=trial) == 0


def fitted_image(engine: DockerEngine, image: str) -> tuple[str, tuple[str, ...]]:
    """(id, command of the interpreter) of an image with this machine's interpreter added.

    It is made once per image and interpreter, and kept on the engine as `sandbox-rl-fitted`.

    Args:
        image: an id.

    Raises:
        SetupError: the image is for another processor, or cannot be built.
    """
    python = portable_python()
    machine = engine.architecture(image)
    if MACHINES.get(machine, machine) != python.machine:
        raise SetupError(
            f"sandbox.image: {image} has no Python 3.9 or newer and is for {machine}, so the one of this "
            f"{python.machine} cannot be put in; use an image with Python"
        )
    short = image.rpartition(":")[2][:24]
    base, tag = f"{BASE}:{short}", f"{FITTED}:{short}-{python.digest[:24]}"
    if not engine.image(tag)[0]:
        engine.tag(image, base)
        engine.build_archive(python.archive(f"FROM {base}\nCOPY python {PLACE}\n"), tag)
    return engine.image(tag)[0], python.command
