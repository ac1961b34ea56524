"""Ray, kept to this file: the connection, the nodes, and calls to their actors with deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from sandbox_rl.display import quieted
from sandbox_rl.errors import SandboxFault, SetupError
from sandbox_rl.sandboxes.ray.node import Failure, SandboxNode, placed

T = TypeVar("T")

REACH_TIMEOUT_S = 10.0
CANCEL_TIMEOUT_S = 5.0  # for a node to say that it has given a call up

_connecting = threading.Lock()
_users = 0  # backends of this process on the connection that we have made; Ray has one per process


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node that is alive. `name` is for people: host and the beginning of the id."""

    id: str
    name: str
    resources: Mapping[str, float]


@contextmanager
def connection(address: str) -> Iterator[None]:
    """The process's connection to a cluster, shared by all that hold one, and with the user's own.

    It blocks. Call it outside the main thread, where Ray would take the SIGTERM handler.

    Raises:
        SetupError: Ray is not installed, or no cluster is at `address`.
    """
    global _users
    with _connecting:
        ray = _ray()
        ours = _users > 0 or not ray.is_initialized()
        if ours:
            if not _users:
                _connect(ray, address)
            _users += 1
    try:
        yield
    finally:
        if ours:
            with _connecting:
                _users -= 1
                if not _users:
                    ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    options: dict[str, Any] = {"address": address}
    named = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    host, _, port = named.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_TIMEOUT_S).close()
        except OSError as error:  # Ray itself would go on trying for many minutes
            raise SetupError(_no_cluster(named, error)) from None
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"include_dashboard": False}
    try:
        with quieted("ray", logging.ERROR):  # it warns that the SIGTERM handler stays ours
            ray.init(**options, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        raise SetupError(_no_cluster(named or address, error)) from None


def _no_cluster(address: str, error: BaseException) -> str:
    return (
        f"sandbox.address: no Ray cluster at {address!r} ({_line(error)}); start one with `ray start "
        "--head`, give HOST:PORT, or say local for one of this process's own"
    )


def ray_version() -> str:
    """Of the installed Ray."""
    return str(_ray().__version__)


def alive_nodes(resources: Mapping[str, float]) -> list[NodeFacts]:
    """Nodes whose resources, used or not, are at least these. It blocks.

    Raises:
        SandboxFault: the cluster does not answer.
    """
    ray = _ray()
    try:
        rows = ray.nodes()
    except (ray.exceptions.RayError, RuntimeError, ConnectionError) as error:
        raise SandboxFault(f"the Ray cluster does not answer: {_line(error)}") from None
    return [
        NodeFacts(row["NodeID"], f"{row['NodeManagerHostname']}/{row['NodeID'][:8]}", dict(row["Resources"]))
        for row in rows
        if row["Alive"] and all(row["Resources"].get(key, 0) >= amount for key, amount in resources.items())
    ]


class NodeActor:
    """The actor of one node. It ends with this process, whatever becomes of it.

    Args:
        node: where it runs; it is never moved.
        arguments: of `SandboxNode`.
        resources: what it takes from Ray's account.
        calls: at the same time.
    """

    def __init__(
        self, node: NodeFacts, arguments: tuple[Any, ...], resources: Mapping[str, float], *, calls: int
    ) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray = _ray()
        rest = {key: amount for key, amount in resources.items() if key not in ("CPU", "GPU", "memory")}
        self.node = node
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._failed = ray.exceptions.RayError
        self._ray = ray
        self._actor = (
            ray.remote(SandboxNode)
            .options(
                num_cpus=resources.get("CPU", 0),
                num_gpus=resources.get("GPU", 0),
                memory=resources.get("memory"),
                resources=rest,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=calls,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node.id, soft=False),
            )
            .remote(*arguments)
        )

    def lose(self, why: str) -> None:
        """Everything that waits for this node, now or later, fails."""
        if not self.lost.done():
            self.lost.set_result(why)

    async def call(self, method: str, *args: Any, timeout: float) -> Any:
        """The result of a method of `SandboxNode`, within `timeout` seconds.

        Raises:
            SandboxFault: the node is lost or does not answer.
            SandboxRLError, ValueError: what the method reports as a `Failure`.
        """
        if self.lost.done():
            raise SandboxFault(f"node {self.node.name} is lost: {self.lost.result()}")
        reference = getattr(self._actor, method).remote(*args)
        answer = asyncio.ensure_future(reference)
        # One that nobody waits for any more is not "never retrieved".
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.wait({answer, self.lost}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return self._checked(answer)
        finally:
            if not answer.done():
                with contextlib.suppress(self._failed, RuntimeError):
                    self._ray.cancel(reference)
                # A cancellation overtakes nothing only if its end is seen: otherwise it may come after
                # the next command, and what ends a command ends all that has begun since.
                try:
                    await asyncio.wait(
                        {answer, self.lost}, timeout=CANCEL_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    answer.cancel()
        if self.lost.done():
            raise SandboxFault(f"node {self.node.name} is lost: {self.lost.result()}")
        raise SandboxFault(f"node {self.node.name} does not answer within {timeout:g} s ({method})")

    def _checked(self, answer: asyncio.Future[Any]) -> Any:
        try:
            value = answer.result()
        except self._ray.exceptions.RayActorError as error:
            self.lose(_line(error))
            raise SandboxFault(f"node {self.node.name} is lost: {_line(error)}") from None
        except self._failed as error:
            raise SandboxFault(f"node {self.node.name} failed: {_line(error)}") from None
        if isinstance(value, Failure):
            raise placed(value, self.node.name)
        return value

    def kill(self) -> None:
        """End the process on the node; what it had made ends with it."""
        self.lose("closed")
        with contextlib.suppress(self._failed, RuntimeError, ValueError):
            self._ray.kill(self._actor)


async def in_own_thread(function: Callable[..., T], *args: Any) -> T:
    """Await one of Ray's blocking calls, which no deadline of ours can end: its thread holds up no exit."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # so that giving it up leaves it to the thread

    def work() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="ray", daemon=True).start()
    return await asyncio.wrap_future(future)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise SetupError("sandbox: the ray backend needs `pip install 'sandbox-rl[ray]'`") from None
    return ray


def _line(error: BaseException) -> str:
    """The last line of a message that says something: Ray's errors are whole tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" \t")]
    causes = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception"))]
    return ((causes or lines[:1] or [type(error).__name__])[-1])[:300]
