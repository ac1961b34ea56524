"""The one client: what is tried again, for how long, and what a reply may be."""

from __future__ import annotations

import asyncio
import email.utils
import time

import pytest
from tenacity import AsyncRetrying, RetryCallState

from sandbox_rl import http_client
from sandbox_rl.http_client import Address, BadAddress, HttpClient, Refused, Unreachable
from sandbox_rl.policies.fake_endpoint import FakeEndpoint, Raw
from sandbox_rl.retries import GaveUp, Retries

ROUTE = "/chat/completions"


async def asked(reply, *, timeout=60.0, **headers):
    async with FakeEndpoint(lambda body, n: reply) as endpoint:
        async with HttpClient(Address(endpoint.base_url), headers=headers) as client:
            return await client.json("POST", ROUTE, {"a": 1}, timeout=timeout), endpoint


async def test_json_goes_out_and_comes_back():
    answer, endpoint = await asked(Raw(b'{"b": 2}'), Authorization="Bearer x")
    assert (answer, endpoint.requests) == ({"b": 2}, [{"a": 1}])
    assert "authorization: bearer x" in endpoint.headers[0].lower()
    assert (await asked(Raw(b"")))[0] is None


@pytest.mark.parametrize("odd", [b'{"b": "\\ud800"}', b'{"b": NaN}'])
async def test_what_a_strict_parser_refuses_is_read(odd):
    assert "b" in (await asked(Raw(odd)))[0]


@pytest.mark.parametrize(
    "reply",
    [
        Raw(b"<html>"),
        Raw(b"[" * 100_000),
        Raw(b"busy", 503),
        Raw(b"slow down", 429),
        Raw(b"conflict", 409),
        Raw(hang_up=True),
        Raw(b'{"b', promised=100, hang_up=True),
        Raw(b"{}", delay_s=30),
    ],
    ids=range(8),
)
async def test_what_may_go_better_is_unreachable(reply):
    with pytest.raises(Unreachable, match=ROUTE):
        await asked(reply, timeout=1.0)


@pytest.mark.parametrize("status", [400, 401, 404, 422, 301])
async def test_what_will_not_is_refused_and_never_tried_again(status):
    tries = []

    async def attempt():
        tries.append(1)
        await asked(Raw(b'{"error": {"message": "no"}}', status, {"Location": "https://other"}))

    with pytest.raises(Refused, match="https://other" if status == 301 else "no") as refused:
        await Retries(3, 0.0).run(attempt)
    assert (refused.value.status, len(tries)) == (status, 1)


@pytest.mark.parametrize("url", ["http://", "http://user:secret@127.0.0.1:9/v1", "http://[::1/v1"])
async def test_an_address_that_is_none_is_reported(url):
    async with HttpClient(Address(url), headers={"Authorization": "Bearer x"}) as client:
        with pytest.raises(BadAddress):
            await client.json("POST", ROUTE, {}, timeout=60.0)


async def test_a_reply_without_an_end_is_cut(monkeypatch):
    monkeypatch.setattr(http_client, "MAX_REPLY_BYTES", 1_000)
    with pytest.raises(Unreachable, match="more than 1000 bytes"):
        await asked(Raw(b" " * 100_000 + b"{}"))


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("7", 7, 7),
        ("100000", 60, 60),
        ("-3", 0, 0),
        ("soon", 0, 0),
        (30, 20, 31),  # a date so many seconds from now
    ],
)
async def test_the_time_that_an_endpoint_asks_for_is_kept_within_reason(header, low, high):
    if isinstance(header, int):
        header = email.utils.formatdate(time.time() + header, usegmt=True)
    with pytest.raises(Unreachable) as busy:
        await asked(Raw(b"", 429, {"Retry-After": header}))
    assert low <= busy.value.wait_s <= high


def waited(attempts: int) -> list[float]:
    state = RetryCallState(AsyncRetrying(), None, (), {})
    state.attempt_number = attempts
    return [Retries(9, 1.0).wait(state) for _ in range(50)]


def test_waits_double_up_to_a_bound_and_differ():
    """Episodes of one server fail together and must not come back together."""
    assert len(set(waited(1))) > 40
    assert all(0.5 <= wait <= 1.5 for wait in waited(1))
    assert all(2.0 <= wait <= 6.0 for wait in waited(3))
    assert all(10.0 <= wait <= 30.0 for wait in waited(20))


async def test_no_try_comes_before_the_time_that_the_endpoint_asked_for():
    times: list[float] = []

    async def busy():
        times.append(time.monotonic())
        if len(times) < 2:
            raise Unreachable("busy", wait_s=0.2)
        return "done"

    assert await Retries(2, 0.0).run(busy) == "done"
    assert times[1] - times[0] >= 0.2


async def test_every_try_is_counted_and_something_may_be_waited_for_between():
    tries, between = [], []

    async def attempt():
        tries.append(1)
        raise Unreachable(f"try {len(tries)}")

    async def recovered():
        between.append(len(tries))

    with pytest.raises(GaveUp, match="try 3") as gave_up:
        await Retries(2, 0.0).run(attempt, between=recovered)
    assert (len(gave_up.value.failures), between) == (3, [1, 2])


async def test_time_that_runs_out_before_a_failure_is_not_the_endpoints():
    async def never():
        await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        await Retries(2).run(never, timeout=0.05)

    tries = []

    async def fails_then_hangs():
        tries.append(1)
        if len(tries) == 1:
            raise Unreachable("broken")
        await asyncio.sleep(60)

    with pytest.raises(GaveUp, match="broken"):
        await Retries(2, 0.0).run(fails_then_hangs, timeout=0.5)
