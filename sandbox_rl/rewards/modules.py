"""The files that scorers of one's own are made of, found by importing them in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sandbox_rl.errors import ConfigError
from sandbox_rl.rewards.base import BUILT_IN, JUDGE, SCORERS

SHOWN_BELOW = "/opt/scorers"
"""Where a sandbox shows the modules of scorers."""

_IMPORT_S = 60.0

_PROGRAM = """
import json, sys, os
names, path = json.loads(sys.stdin.read())
sys.path[:] = path
out = os.dup(1); os.dup2(2, 1)
from sandbox_rl.errors import ConfigError
from sandbox_rl.rewards.base import load_scorer
try:
    for name in names:
        load_scorer(name)
except ConfigError as error:
    answer = {"error": str(error)}
except BaseException as error:
    answer = {"error": f"scorer {name!r} cannot be imported ({type(error).__name__}: {error})"}
else:
    answer = {"files": {
        name: getattr(module, "__file__", None) or list(getattr(module, "__path__", [""]))[0]
        for name, module in list(sys.modules.items())
    }}
os.write(out, json.dumps(answer).encode())
"""


def own_scorers(names: Sequence[str]) -> tuple[str, ...]:
    """Those that are not ours, by import path or of installed packages; a name that is neither is refused.

    Raises:
        ConfigError: a name is not known.
    """
    own = []
    for name in dict.fromkeys(names):
        if name in BUILT_IN or name == JUDGE:
            continue
        SCORERS.require(name)
        own.append(name)
    return tuple(own)


def find_modules(names: Sequence[str], *, beside: Path | None = None) -> Mapping[Path, str]:
    """Host path → place in the sandbox, for every module that these scorers import and that no package
    directory holds.

    Args:
        beside: a directory in which modules are looked for besides the Python path.

    Raises:
        ConfigError: one cannot be imported, or cannot be read by other users.
    """
    if not names:
        return {}
    path = [*(entry for entry in sys.path if entry), *([str(beside.resolve())] if beside else [])]
    try:
        done = subprocess.run(
            [sys.executable, "-B", "-c", _PROGRAM],
            input=json.dumps([list(names), path]),
            capture_output=True,
            text=True,
            timeout=_IMPORT_S,
            env={**os.environ, "PYTHONPATH": ":".join(path)},
            check=False,
        )
        found = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"scorers {', '.join(names)}: importing them took more than a minute") from error
    except ValueError as error:
        said = done.stderr.strip().splitlines()
        raise ConfigError(
            f"scorers {', '.join(names)} cannot be imported: the process ended with {done.returncode} "
            f"({said[-1] if said else 'and printed nothing'})"
        ) from error
    if "error" in found:
        raise ConfigError(found["error"])
    return _tops(found["files"])


def _tops(files: Mapping[str, str]) -> dict[Path, str]:
    """The top-level modules and packages that lie outside of what every sandbox shows."""
    known = tuple(
        os.path.realpath(place) + "/"
        for place in (
            f"{sys.base_prefix}/lib",
            *(p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")),
            str(Path(__file__).parents[1]),
        )
    )
    shown: dict[Path, str] = {}
    for name, file in files.items():
        if not file or name == "__main__" or os.path.realpath(file).startswith(known):
            continue
        top = name.partition(".")[0]
        # The directory of a package, also of one without `__init__.py`, or the file of a module.
        place = Path(file).parent if Path(file).name == "__init__.py" else Path(file)
        for _ in range(name.count(".")):
            place = place.parent
        if top != name and top in files and Path(files[top] or "x").name != "__init__.py":
            place = Path(file).parents[name.count(".") - 1]
        if place.exists():
            shown[place] = f"{SHOWN_BELOW}/{top}{place.suffix if place.is_file() else ''}"
    return shown
