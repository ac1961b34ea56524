"""How the suite is shared among processes (`pytest -n 2 --dist loadgroup`); alone it runs in order.

What looks at the whole machine, or starts a server or an engine for a session, stays together in one
process. Every other file is a group of its own.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

TOGETHER = {"security": "sandboxes", "contract": "sandboxes", "vllm": "vllm"}
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        file = item.path.relative_to(HERE)
        item.add_marker(pytest.mark.xdist_group(TOGETHER.get(file.parts[0], str(file))))
