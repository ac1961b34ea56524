"""Sandboxes on the nodes of a Ray cluster: new ones go to the node with most capacity, and stay there."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from typing import cast

from sandbox_rl import __version__
from sandbox_rl.errors import SandboxFault, SandboxRLError, SetupError
from sandbox_rl.sandboxes.agent_backend import to_the_end
from sandbox_rl.sandboxes.agent_sandbox import AgentSandbox
from sandbox_rl.sandboxes.base import SandboxInfo
from sandbox_rl.sandboxes.config import PoolSettings, RaySettings
from sandbox_rl.sandboxes.names import check_files
from sandbox_rl.sandboxes.ray.cluster import (
    NodeActor,
    NodeFacts,
    alive_nodes,
    connection,
    in_own_thread,
    ray_version,
)
from sandbox_rl.sandboxes.ray.node import NodeReport
from sandbox_rl.sandboxes.ray.sandbox import RemoteSandbox

REPORT_INTERVAL_S = 1.0
SCAN_INTERVAL_S = 5.0
SCAN_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 120.0
RETRY_S = 60.0  # after a node could not start its pool
PATIENCE_S = 15.0  # for one node to make a sandbox before another is tried
GRACE_S = 5.0  # for a reply on its way
CLOSE_TIMEOUT_S = 60.0


class _Node:
    """What the owner knows of a node: its actor, its last report, and the sandboxes on it."""

    def __init__(self, actor: NodeActor, info: SandboxInfo, report: NodeReport) -> None:
        self.actor = actor
        self.info = info
        self.report = report
        self.names: set[str] = set()
        self.task: asyncio.Task[None] | None = None

    @property
    def capacity(self) -> int:
        """Further sandboxes that fit, as far as is known."""
        return 0 if self.report.trouble else self.report.live + self.report.free - len(self.names)


class RayBackend:
    """Makes sandboxes through one actor per node, each with a pool of its own.

    Nodes that join are used, nodes that leave are forgotten; whatever waits for a lost node gets a
    `SandboxFault`, and the episode begins anew elsewhere. The actors belong to this process: they end
    with it, and by themselves when they have not heard of it for `lost_after_s`.

    Args:
        settings: the cluster and what its nodes do.
        pool: of each node's pool.
    """

    def __init__(self, settings: RaySettings, *, pool: PoolSettings | None = None) -> None:
        self._settings = settings
        self._pool = pool or PoolSettings()
        self._connection: AbstractContextManager[None] | None = None
        self._nodes: dict[str, _Node] = {}
        self._refused: dict[str, tuple[float, str]] = {}  # node → when it may be asked again, and why not
        self._last_info: SandboxInfo | None = None
        self._changed = asyncio.Event()
        self._scanner: asyncio.Task[None] | None = None

    @property
    def info(self) -> SandboxInfo:
        """Tiers of the nodes, and what any of them lacks; valid once entered."""
        if not self._nodes:
            if self._last_info is None:
                raise RuntimeError("RayBackend.info is known once the backend has been entered")
            return self._last_info  # all are lost for the moment
        infos = [node.info for node in self._nodes.values()]
        lacks = dict.fromkeys(sentence for info in infos for sentence in info.lacks)
        lacks |= dict.fromkeys(f"No sandboxes on this node: {why}" for _, why in self._refused.values())
        self._last_info = SandboxInfo(
            backend="ray",
            tier=", ".join(sorted({info.tier for info in infos})) + f" on {len(infos)} nodes",
            version=f"Ray {ray_version()}; " + ", ".join(sorted({info.version for info in infos})),
            lacks=tuple(lacks),
            known_limits=tuple(dict.fromkeys(case for info in infos for case in info.known_limits)),
            details={node.actor.node.name: node.info.tier for node in self._nodes.values()},
        )
        return self._last_info

    async def __aenter__(self) -> RayBackend:
        settings = self._settings
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                joined = connection(settings.address)
                await in_own_thread(joined.__enter__)
                self._connection = joined
                nodes = await in_own_thread(alive_nodes, settings.resources)
            await asyncio.gather(*(self._add(node) for node in nodes))
            if not self._nodes:
                raise SetupError(self._why_no_node())
        except BaseException as error:
            await self.__aexit__()
            if isinstance(error, SandboxFault | TimeoutError):
                raise SetupError(
                    f"sandbox.address: the Ray cluster at {settings.address!r} does not answer ({error})"
                ) from None
            raise
        self._last_info = self.info
        self._scanner = asyncio.create_task(self._scan(), name="ray nodes")
        return self

    def _why_no_node(self) -> str:
        for _, why in self._refused.values():
            return why
        return (
            f"sandbox.resources: no node of the Ray cluster has {self._settings.resources}; ask for less, "
            "or give the nodes these resources"
        )

    async def __aexit__(self, *exc: object) -> None:
        tasks = [task for task in (self._scanner, *(n.task for n in self._nodes.values())) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        nodes, self._nodes, self._scanner = list(self._nodes.values()), {}, None
        await asyncio.gather(*(_stop(node.actor) for node in nodes))
        self._refused.clear()
        self._last_info = None
        if self._connection is not None:
            leaving, self._connection = self._connection, None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await in_own_thread(leaving.__exit__, None, None, None)

    @asynccontextmanager
    async def sandbox(
        self, files: Mapping[str, bytes] | None = None, *, timeout: float = 60.0
    ) -> AsyncIterator[AgentSandbox]:
        """A new sandbox; see `SandboxBackend.sandbox`.

        A node that fails or takes long is left for another one while `timeout` lasts.
        """
        check_files(files or {}, self._settings.limits)
        node, name = await self._open(files or {}, time.monotonic() + timeout, timeout)
        sandbox = RemoteSandbox(name, node.actor)
        try:
            yield cast(AgentSandbox, sandbox)  # it has every method of one, each forwarded
        finally:
            sandbox.closed = True
            await self._close(node, name)

    async def _open(self, files: Mapping[str, bytes], deadline: float, timeout: float) -> tuple[_Node, str]:
        """Where the new sandbox is, and its name there."""
        fault = "no node has capacity"
        tried: set[str] = set()
        while (left := deadline - time.monotonic()) > 0:
            node = self._most_free(tried)
            if node is None:
                tried.clear()
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._changed.wait()
                continue
            share = min(left, PATIENCE_S)
            name = f"ray-{secrets.token_hex(8)}"
            node.names.add(name)
            try:
                await node.actor.call("open", name, dict(files), share, timeout=share + GRACE_S)
            except (SandboxFault, SetupError) as error:
                fault = str(error)
                tried.add(node.actor.node.id)
                await self._close(node, name)
            except BaseException:
                await self._close(node, name)
                raise
            else:
                return node, name
        raise SandboxFault(f"no sandbox within {timeout:g} s; {fault}")

    def _most_free(self, tried: set[str]) -> _Node | None:
        """The node with most capacity that has not failed this request."""
        nodes = [node for id, node in self._nodes.items() if id not in tried and node.capacity > 0]
        return max(nodes, key=lambda node: node.capacity, default=None)

    async def _close(self, node: _Node, name: str) -> None:
        """Destroy it whatever happens; one that cannot be reached falls to the node itself."""
        try:
            with contextlib.suppress(SandboxFault):
                await to_the_end(node.actor.call("close", name, timeout=CLOSE_TIMEOUT_S))
        finally:
            node.names.discard(name)
            self._changed.set()

    async def _add(self, facts: NodeFacts) -> None:
        """Start an actor on a node and use it from now on, or remember why not."""
        settings = self._settings
        arguments = (settings.on_this_machine(), self._pool, settings.lost_after_s)
        actor = NodeActor(facts, arguments, settings.resources, calls=4 * self._pool.max_live + 64)
        try:
            info = await actor.call("start", __version__, timeout=settings.start_timeout_s)
            report = await actor.call("report", frozenset(), timeout=settings.lost_after_s)
        except (SandboxRLError, ValueError) as error:
            actor.kill()
            self._refused[facts.id] = (time.monotonic() + RETRY_S, str(error))
            return
        except BaseException:
            actor.kill()
            raise
        node = _Node(actor, info, report)
        node.task = asyncio.create_task(self._follow(node), name=f"ray {facts.name}")
        self._nodes[facts.id] = node
        self._refused.pop(facts.id, None)
        self._changed.set()

    async def _follow(self, node: _Node) -> None:
        """Keep a node's lease and report fresh, until it is lost."""
        heard = time.monotonic()
        limit = self._settings.lost_after_s
        while not node.actor.lost.done():
            await asyncio.wait([node.actor.lost], timeout=REPORT_INTERVAL_S)
            try:
                node.report = await node.actor.call("report", frozenset(node.names), timeout=limit / 2)
                heard = time.monotonic()
                self._changed.set()
            except SandboxRLError as error:
                if time.monotonic() - heard > limit:
                    node.actor.lose(str(error))
        self._nodes = {id: other for id, other in self._nodes.items() if other is not node}
        node.actor.kill()

    async def _scan(self) -> None:
        """Find nodes that have joined, and those whose actor alone has died."""
        while True:
            await asyncio.sleep(SCAN_INTERVAL_S)
            with contextlib.suppress(SandboxFault, TimeoutError):
                async with asyncio.timeout(SCAN_TIMEOUT_S):
                    found = await in_own_thread(alive_nodes, self._settings.resources)
                alive = {node.id for node in found}
                self._refused = {id: kept for id, kept in self._refused.items() if id in alive}
                for id in set(self._nodes) - alive:
                    self._nodes[id].actor.lose("it has left the cluster")
                now = time.monotonic()
                new = [
                    node
                    for node in found
                    if node.id not in self._nodes and now >= self._refused.get(node.id, (0.0, ""))[0]
                ]
                await asyncio.gather(*(self._add(node) for node in new))


async def _stop(actor: NodeActor) -> None:
    with contextlib.suppress(SandboxRLError):
        await actor.call("stop", timeout=CLOSE_TIMEOUT_S)
    actor.kill()
