"""The control routes of servers, in the terms of a publication: what fails is an `EngineFault`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

from sandbox_rl.errors import EngineFault
from sandbox_rl.http_client import Refused, Unreachable
from sandbox_rl.policies.vllm.api import VLLMServer
from sandbox_rl.training.publication.payload import Checksums

T = TypeVar("T")


async def control(
    server: VLLMServer,
    route: str,
    body: Mapping[str, Any] | None = None,
    *,
    method: str = "POST",
    query: Mapping[str, str] | None = None,
) -> Any:
    """The answer of a control route.

    Raises:
        EngineFault: it refused, or there was none.
    """
    return await _said(server, server.call(method, route, body, query=query))


async def control_all(
    servers: Sequence[VLLMServer],
    route: str,
    body: Mapping[str, Any] | None = None,
    *,
    query: Mapping[str, str] | None = None,
) -> None:
    """The same of every server at once; all have answered or failed when this returns."""
    calls = [control(server, route, body, query=query) for server in servers]
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def rpc(server: VLLMServer, method: str, *args: str) -> list[Any]:
    """What a method of the worker extension answers, one result per worker."""
    return await _said(server, server.rpc(method, *args))


async def version_of(server: VLLMServer) -> int | None:
    """Of the weights that a server was given; None where it has loaded them by itself.

    Raises:
        EngineFault: it does not say.
    """
    return await _said(server, server.weights_version())


async def pause(servers: Sequence[VLLMServer], *, asleep: bool, version: int) -> None:
    """Freeze the requests in flight, and have servers note how many tokens each has by then.

    Args:
        version: of the weights that they go on with.
        asleep: they were put to sleep: those that still sleep get their weights' memory back instead. One
            that died meanwhile was started anew and is awake.
    """
    for server in servers:
        if asleep and await _sleeps(server):
            await control(server, "/wake_up", query={"tags": "weights"})
        else:
            await control(server, "/pause", query={"mode": "keep"})
            await rpc(server, "sandbox_rl_frozen", str(version))


async def resume(servers: Sequence[VLLMServer], *, asleep: bool) -> None:
    """Let requests go on; servers that sleep get their cache back before."""
    for server in servers:
        if asleep and await _sleeps(server):
            await control(server, "/wake_up", query={"tags": "kv_cache"})
    await control_all(servers, "/resume")


async def sleep(servers: Sequence[VLLMServer]) -> None:
    """Have the servers give their memory back. Level 2 forgets the weights: who wakes them publishes."""
    await control_all(servers, "/sleep", query={"level": "2"})


async def finish_update(servers: Sequence[VLLMServer], expected: Checksums, version: int) -> None:
    """End an update, hold the servers against the trainer's checksums, and have them know the version.

    Raises:
        EngineFault: a server holds something else.
    """
    await control_all(servers, "/finish_weight_update")
    await after_load(servers, expected, version)


async def after_load(servers: Sequence[VLLMServer], expected: Checksums, version: int) -> None:
    """Repair what loading leaves behind, hold the servers against the checksums, forget old prefixes.

    Whoever samples asks them for the version: one that has ended since, and was started again, knows none.

    Raises:
        EngineFault: a server holds something else.
    """
    for server in servers:
        await rpc(server, "sandbox_rl_after_update")
        await verify(server, expected)
        await rpc(server, "sandbox_rl_version", str(version))
    # Requests salt their prefixes by version, so that stale blocks are unreachable already; this only
    # frees them, and fails harmlessly while frozen requests hold some.
    await control_all(servers, "/reset_prefix_cache")


async def verify(server: VLLMServer, checksums: Checksums) -> None:
    """Hold a server's own checksums of some tensors against the trainer's.

    Raises:
        EngineFault: it holds something else, or none of them.
    """
    rows = json.dumps({name: shape[0] for name, (shape, _) in checksums.items()})
    compared = 0
    for worker in await rpc(server, "sandbox_rl_checksums", rows):
        for name, (shape, crc) in worker.items():
            expected_shape, expected = checksums[name]
            if list(shape) != expected_shape:
                continue  # a shard of it
            compared += 1
            if crc != expected:
                raise EngineFault(
                    f"{server.address}: after the weight transfer {name!r} differs from the trainer's "
                    f"(checksum {crc:08x}, expected {expected:08x})"
                )
    if not compared:
        raise EngineFault(
            f"{server.address}: none of {sorted(checksums)} could be verified after the transfer"
        )


async def _said(server: VLLMServer, answer: Awaitable[T]) -> T:
    try:
        return await answer
    except (Refused, Unreachable) as error:
        raise EngineFault(f"weight transfer to {server.address}: {error}") from error


async def _sleeps(server: VLLMServer) -> bool:
    return bool((await control(server, "/is_sleeping", method="GET"))["is_sleeping"])
