"""A Ray cluster of the tests' own, in a process of its own; without Ray its tests are skipped, not in CI.

Run as a program it is that process: it takes `add` and `kill NODE` from standard input and ends with it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox_rl.sandboxes.base import SandboxLimits
from sandbox_rl.sandboxes.config import RaySettings
from tests.processes import commands, tree_of

__all__ = ["RayCluster", "of_clusters", "ray_cluster", "settings_for"]

STORE = 80 << 20  # bytes of shared memory per node


def settings_for(address: str, limits: SandboxLimits | None = None, **values: object) -> RaySettings:
    """For the nodes of the tests' cluster that are meant for sandboxes; its head is not."""
    return RaySettings.model_validate(
        {
            "type": "ray",
            "address": address,
            "resources": {"sandboxes": 1},
            "limits": limits or SandboxLimits(),
            "lost_after_s": 10,
            **values,
        }
    )


class RayCluster:
    """The running process. `nodes` are the ids of the living nodes that are meant for sandboxes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._line()
        self.nodes: list[str] = []

    def add(self) -> str:
        """One more node; returns its id."""
        self.nodes.append(self._ask("add"))
        return self.nodes[-1]

    def kill(self, node: str) -> None:
        """SIGKILL to everything that is Ray's on it."""
        self._ask(f"kill {node}")
        self.nodes.remove(node)

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the Ray cluster of the tests has ended"
        return line


@contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    """A head and two nodes for sandboxes."""
    if importlib.util.find_spec("ray") is None:
        why = "pip install 'ray>=2.50'"
        if os.environ.get("CI"):
            pytest.fail(f"no Ray for the tests: {why}")
        pytest.skip(f"NO RAY, the ray backend is NOT TESTED: {why}")
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as directory:
        environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": directory}
        with (Path(directory) / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.ray_cluster"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                cwd=Path(__file__).parents[1],
            )
            with process:
                try:
                    cluster = RayCluster(process)
                    cluster.add()
                    cluster.add()
                    yield cluster
                finally:
                    assert process.stdin is not None
                    process.stdin.close()
                    try:
                        process.wait(30)
                    except subprocess.TimeoutExpired:
                        process.kill()


def of_clusters() -> set[int]:
    """Process ids of the tests' clusters: Ray starts and ends some of its own as long as one stands."""
    tops = [pid for pid, words in commands().items() if words[1:] == ["-m", "tests.ray_cluster"]]
    return {pid for top in tops for pid in tree_of(top)}


def main() -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE},
    )
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Ray prints to standard output
    nodes = {}
    print(cluster.address, file=out)
    for line in sys.stdin:
        match line.split():
            case ["add"]:
                node = cluster.add_node(num_cpus=1, resources={"sandboxes": 1}, object_store_memory=STORE)
                nodes[node.node_id] = node
                print(node.node_id, file=out)
            case ["kill", id]:
                cluster.remove_node(nodes.pop(id), allow_graceful=False)
                print("killed", file=out)
    cluster.shutdown()


if __name__ == "__main__":
    main()
