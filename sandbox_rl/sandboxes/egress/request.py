"""What a proxy is asked for: the head of a request, parsed strictly."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["BadRequest", "ProxyRequest", "parse_head"]

_AUTHORITY = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^\s/@:\[\]]+)(?::(\d{1,5}))?")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[ \t]*[^\r\n\0]*")
_LINE = re.compile(r"([A-Z]{1,16}) ([!-~]{1,16384}) HTTP/1\.[01]")
_OWN_FIELD = re.compile(rb"(host|connection|keep-alive|upgrade|proxy-[^:]*):", re.IGNORECASE)


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
    """A request's head as a proxy gets it. Raises BadRequest for anything else.

    Towards the server the Host field is the host that was checked, whatever the request said.
    """
    line, *fields = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    found = _LINE.fullmatch(line.decode("latin-1"))
    if not found:
        raise BadRequest("not an HTTP/1 request")
    if not all(_FIELD.fullmatch(field) for field in fields):
        raise BadRequest("a malformed header field")
    method, target = found.groups()
    if method == "CONNECT":
        return ProxyRequest(*_authority(target, None), b"")
    authority, slash, path = target.removeprefix("http://").partition("/")
    if not target.startswith("http://"):
        raise BadRequest("expected CONNECT, or a URL of http://")
    host, port = _authority(authority, 80)
    kept = [field for field in fields if not _OWN_FIELD.match(field)]
    first = f"{method} {slash or '/'}{path} HTTP/1.1".encode("ascii")
    own = (f"Host: {authority}".encode("latin-1"), b"Connection: close")
    return ProxyRequest(host, port, b"\r\n".join((first, *own, *kept)) + b"\r\n\r\n")


def _authority(text: str, default: int | None) -> tuple[str, int]:
    match = _AUTHORITY.fullmatch(text)
    if not match or not text.isascii() or (match[2] is None and default is None):
        raise BadRequest("expected host:port")
    return match[1], int(match[2]) if match[2] else default or 0
