"""How the suite is shared among the processes of `scripts/test`; in one process it runs in this order.

What looks at the whole machine, or starts a server or an engine for a session, stays together in one
process. Every other file may go to any.
"""

import gc
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from .contract.backends import ENGINE_VARIABLE
from .docker_engine import docker_engine
from .prepared import READ_AT_IMPORT

pytest_plugins = ["tests.processor_time"]

# In a job that a script has put into the background, processes of the tests would not take Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before torch is imported. The models are so small that a second thread costs more than it gives.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once; who asks the Hub in vain waits for most of a minute

settings.register_profile("no_clock", deadline=None)  # a busy machine is no failure
settings.load_profile("no_clock")

TOGETHER = {"security": "sandboxes", "contract": "sandboxes", "vllm": "vllm"}
ORDER = ("vllm", "contract", "security", "smoke")
"""The longest first, so that all processes end at about the same time."""
HERE = Path(__file__).parent


class _ByPlace(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return TOGETHER.get(file.split("/")[1], file)


@pytest.hookimpl(optionalhook=True)  # one process needs no scheduler
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    config.option.loadscopereorder = False
    return _ByPlace(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        top = item.path.relative_to(HERE).parts[0]
        return ORDER.index(top) if top in ORDER else len(ORDER)

    items.sort(key=rank)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where a few marked tests of the whole suite are wanted, what has none of them is not imported."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    wanted = re.match(r"(?:alone|faults)\b", config.option.markexpr)
    if not (whole and wanted):
        return None
    files = collection_path.rglob("test_*.py") if collection_path.is_dir() else [collection_path]
    return not any(f"mark.{wanted[0]}" in path.read_text() for path in files) or None


def pytest_collection_finish() -> None:
    """What all tests have is no garbage: collections leave it out, such as each engine starts with."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_for_libraries() -> Iterator[None]:
    """A command that a test runs in this process sets variables that libraries read. Left behind, all later
    programs would be started with them, from nothing (`prepared`): nine seconds of processor time each."""
    before = _read_by_libraries()
    yield
    for name in _read_by_libraries().keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _read_by_libraries() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(READ_AT_IMPORT)}


@pytest.fixture(scope="session")
def engine() -> Iterator[str]:
    """A Docker engine, for all tests that need no other; the probe for leaks looks at it from then on."""
    with docker_engine() as host, pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENGINE_VARIABLE, host)
        yield host


def pytest_configure() -> None:
    """Each process gets a directory for temporary files: leaks are counted in one's own."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        own = tempfile.mkdtemp(prefix=f"{worker}-")
        os.chmod(own, 0o1777)
        os.environ["TMPDIR"] = tempfile.tempdir = own


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)
