"""How the suite is shared among processes, as `scripts/test` has it; alone it runs in order.

What looks at the whole machine, or starts a server or an engine for a session, stays together in one
process. Every other file is a group of its own.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

TOGETHER = {"security": "sandboxes", "contract": "sandboxes", "vllm": "vllm"}
ORDER = {"vllm": 0, "contract": 1, "security": 2, "smoke": 3}
HERE = Path(__file__).parent


def pytest_configure() -> None:
    """Each process gets a directory for temporary files: leaks are counted in one's own."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        own = tempfile.mkdtemp(prefix=f"{worker}-")
        os.chmod(own, 0o1777)
        os.environ["TMPDIR"] = tempfile.tempdir = own


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # before the groups are read
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {item: item.path.relative_to(HERE) for item in items}
    for item, place in places.items():
        item.add_marker(pytest.mark.xdist_group(TOGETHER.get(place.parts[0], str(place))))
    # The longest groups first, so that both processes end at about the same time.
    items.sort(key=lambda item: ORDER.get(places[item].parts[0], len(ORDER)))
