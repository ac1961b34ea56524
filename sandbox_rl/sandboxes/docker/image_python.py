"""An interpreter for the agent, put into images that have none: this machine's own, with all it loads.

An image with nothing but a POSIX shell, of any C library or none, then holds sandboxes like others: the
interpreter is started through its own loader with its own libraries. Commands do not find it by name.
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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sandbox_rl.errors import SetupError
from sandbox_rl.sandboxes.bundle import agent_source

__all__ = ["PLACE", "PortablePython", "portable_python"]

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
