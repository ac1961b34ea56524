"""No connection of a sandbox's is lost on its way to the proxy, whenever the proxy is closed."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings

import pytest

from sandbox_rl.sandboxes.egress.listener import accepted


async def test_a_connection_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        taking = asyncio.create_task(accepted(listener))
        await asyncio.sleep(0)
        with socket.create_connection(listener.getsockname(), timeout=30) as client, await taking as inside:
            client.sendall(b"hello")
            assert await asyncio.get_running_loop().sock_recv(inside, 9) == b"hello"


@pytest.mark.parametrize("passes", range(4))
async def test_a_connection_that_comes_as_its_taker_is_cancelled_is_not_lost(passes):
    """`loop.sock_accept` drops one that was taken in the pass in which its caller is cancelled."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        listener.setblocking(False)
        taking = asyncio.create_task(accepted(listener))
        await asyncio.sleep(0)
        with socket.create_connection(listener.getsockname(), timeout=30):
            for _ in range(passes):
                await asyncio.sleep(0)
            loop.call_soon(taking.cancel)
            (result,) = await asyncio.gather(taking, return_exceptions=True)
            if isinstance(result, socket.socket):
                result.close()
            else:
                assert isinstance(result, asyncio.CancelledError)
            del result, taking
            gc.collect()
    assert not [warning for warning in caught if "unclosed" in str(warning.message)]
