"""Whatever a sandbox sends as the head of a request, what goes out names the host that was checked."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_rl.sandboxes.egress.request import BadRequest, ProxyRequest, parse_head

PIECES = st.sampled_from(
    [
        *(b"GET ", b"CONNECT ", b"http://", b"a.test", b"b.test", b":80", b":", b"@", b"/", b"[::1]", b"?"),
        *(b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2", b"\r\n", b"\n", b"\r", b" ", b"\t", b"\0", b"\xff"),
        *(
            b"Host: b.test",
            b"host:b.test",
            b"Proxy-Authorization: x",
            b"Connection: upgrade",
            b"X: y",
            b"X : y",
        ),
    ]
)
HEADS = st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=16).map(b"".join))


@settings(max_examples=2000, deadline=None)
@given(HEADS)
def test_any_bytes_are_refused_or_name_one_host(data: bytes) -> None:
    first, _, _ = data.partition(b"\r\n\r\n")  # a head ends there
    host = b"GET http://a.test/ HTTP/1.1\r\nHost: c.test\r\n"
    for head in (first, b"GET http://a.test:8/" + first, host + first):
        request: ProxyRequest | None = None
        with contextlib.suppress(BadRequest):
            request = parse_head(head + b"\r\n\r\n")
        if request is None or request.tunnel:
            continue
        line, *fields = request.head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        assert len(line.split(b" ")) == 3
        names = [field.partition(b":")[0].strip().lower() for field in fields]
        assert names.count(b"host") == names.count(b"connection") == 1
        assert not any(name.startswith(b"proxy-") for name in names)
        assert fields[0].removeprefix(b"Host: ").decode() in (request.host, f"{request.host}:{request.port}")
        assert not any(byte in request.head.replace(b"\r\n", b"") for byte in b"\r\n\0")


def test_an_ordinary_request_is_taken() -> None:
    request = parse_head(
        b"GET http://a.test:81/x?y HTTP/1.1\r\nHost: other\r\nProxy-Connection: keep-alive\r\nA: b\r\n\r\n"
    )
    assert (request.host, request.port, request.tunnel) == ("a.test", 81, False)
    wanted = b"GET /x?y HTTP/1.1\r\nHost: a.test:81\r\nConnection: close\r\nA: b\r\n\r\n"
    assert request.head == wanted
    assert parse_head(b"CONNECT a.test:443 HTTP/1.1\r\nHost: x\r\n\r\n") == ProxyRequest("a.test", 443, b"")


@pytest.mark.parametrize(
    "head",
    [
        b"GET http://a.test/ HTTP/1.1\nHost: a.test\n\nGET http://b.test/ HTTP/1.1\r\n\r\n",
        b"GET http://a.test/ HTTP/1.1\r\n\r\n",
        b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"GET https://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET http://u@a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"CONNECT a.test HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"\x16\x03\x01\x02\x00\r\n\r\n",
    ],
)
def test_what_is_no_single_request_to_a_proxy_is_refused(head: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_head(head)
