"""What a proxy is asked for: the head of a request, parsed and written anew by h11."""

from __future__ import annotations

import re
from dataclasses import dataclass

import h11

_AUTHORITY = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^\s/@:\[\]]+)(?::(\d{1,5}))?")
_METHOD = re.compile(rb"[A-Z]{1,16}")
_FOR_PROXIES = frozenset({b"host", b"connection", b"keep-alive", b"upgrade"})
"""Fields of one hop, besides those whose names begin with `proxy-`."""


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """A request's head: where it goes, and what is sent there instead of it (nothing for a tunnel)."""

    host: str
    port: int
    head: bytes

    @property
    def tunnel(self) -> bool:
        return not self.head


class BadRequest(Exception):
    """It is not HTTP as a proxy is spoken to."""


def parse_head(head: bytes) -> ProxyRequest:
    """A request's head as a proxy gets it, up to the empty line. Raises BadRequest for anything else.

    Towards the server the Host field is the host that was checked, whatever the request said.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(head) + 1)
    try:
        connection.receive_data(head)
        request = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise BadRequest(f"not an HTTP/1 request: {error}") from None
    # h11 ends lines, and so a head, at a bare line feed as well.
    if not isinstance(request, h11.Request) or connection.trailing_data[0]:
        raise BadRequest("not an HTTP/1 request")
    if not _METHOD.fullmatch(request.method):
        raise BadRequest("not a method of HTTP")
    target = request.target.decode("latin-1")
    if request.method == b"CONNECT":
        return ProxyRequest(*_authority(target, None), b"")
    authority, slash, path = target.removeprefix("http://").partition("/")
    if not target.startswith("http://"):
        raise BadRequest("expected CONNECT, or a URL of http://")
    host, port = _authority(authority, 80)
    return ProxyRequest(host, port, _for_server(request, authority, f"{slash or '/'}{path}"))


def _for_server(request: h11.Request, authority: str, target: str) -> bytes:
    kept = [
        (name, value)
        for name, value in request.headers.raw_items()
        if name.lower() not in _FOR_PROXIES and not name.lower().startswith(b"proxy-")
    ]
    headers = [(b"Host", authority.encode("ascii")), (b"Connection", b"close"), *kept]
    own = h11.Request(method=request.method, target=target.encode("latin-1"), headers=headers)
    sent = h11.Connection(h11.CLIENT).send(own)
    assert sent is not None  # a request always has bytes
    return sent


def _authority(text: str, default: int | None) -> tuple[str, int]:
    match = _AUTHORITY.fullmatch(text)
    if not match or not text.isascii() or (match[2] is None and default is None):
        raise BadRequest("expected host:port")
    return match[1], int(match[2]) if match[2] else default or 0
