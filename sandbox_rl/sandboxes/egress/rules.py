"""Which hosts the sandboxes may reach, and which addresses they never do."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

from sandbox_rl.sandboxes.config import NetworkMode

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Addresses of a host name, for a port. Raises OSError when there are none."""

DEFAULT_PORTS = (80, 443)
RESOLVERS = 8
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)")
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}$)({_LABEL}\.)*{_LABEL}")
_METADATA = tuple(map(ipaddress.ip_network, ("168.63.129.16/32", "192.0.0.0/24", "fd00:ec2::/32")))
"""Services for the machine itself that clouds put at addresses which look like any other."""
_CARRY_IPV4 = (  # networks whose addresses stand for an IPv4 address, and where in them it stands
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),
    (ipaddress.IPv6Network("::ffff:0:0:0/96"), 0),
    (ipaddress.IPv6Network("::/96"), 0),
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),
    (ipaddress.IPv6Network("64:ff9b:1::/48"), 0),
    (ipaddress.IPv6Network("2002::/16"), 80),
)


class Refused(Exception):
    """A connection that the rules forbid; the text is for the policy and for the log."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where to connect: one of these addresses, which have been checked, and no others."""

    host: str
    port: int
    addresses: tuple[str, ...]


async def resolve_by_system(host: str, port: int) -> Sequence[str]:
    """The host machine's own resolver, in threads that nothing else waits for."""
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_resolving(), ask)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@cache
def _resolving() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(RESOLVERS, thread_name_prefix="resolve")


def is_public(address: str) -> bool:
    """Whether an address belongs to the internet at large: not private, link-local (metadata), loopback,
    shared, multicast, reserved, nor this machine's own, nor such an IPv4 address written as IPv6.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.scope_id is not None or parsed.is_site_local or parsed.teredo is not None:
            return False
        for network, shift in _CARRY_IPV4:
            if parsed in network:
                return is_public(str(ipaddress.IPv4Address(int(parsed) >> shift & 0xFFFFFFFF)))
    if not parsed.is_global or parsed.is_multicast or parsed.is_reserved:
        return False
    if any(parsed in network for network in _METADATA):
        return False
    return not _is_this_machine(parsed)


def _is_this_machine(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Only a machine's own addresses can be bound."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class NetworkRules:
    """What may be reached: named hosts (`allowlist`), or every public one (`full`).

    Args:
        mode: "off" allows nothing.
        allowed: `host` (ports 80 and 443) or `host:port`.
        resolve: gives the addresses of a name.
        public: judges an address; tests count one server of their own as public.
    """

    mode: NetworkMode
    allowed: tuple[str, ...] = ()
    resolve: Resolver = resolve_by_system
    public: Callable[[str], bool] = is_public

    def __str__(self) -> str:
        return f"{self.mode}: {', '.join(self.allowed)}" if self.allowed else self.mode

    async def destination(self, host: str, port: int) -> Destination:
        """Where a request for `host` may go.

        Every address must be public, as one that is not tells of a name that is turned against the host.

        Raises:
            Refused: nowhere.
        """
        name = host.lower().removesuffix(".")
        if not 0 < port < 65_536:
            raise Refused(f"{port} is no port")
        if self.mode == "off" or (self.mode == "allowlist" and not self._named(name, port)):
            raise Refused(f"{host}:{port} is not on the list of allowed hosts")
        addresses: Sequence[str]
        try:
            addresses = [str(ipaddress.ip_address(name.removeprefix("[").removesuffix("]")))]
        except ValueError:
            if not _NAME.fullmatch(name) or _NUMBER.fullmatch(name.rpartition(".")[2]):
                raise Refused(f"{host!r} is no host name") from None  # 2130706433 and 0177.1 are addresses
            try:
                addresses = await self.resolve(name, port)
            except (OSError, UnicodeError) as error:
                raise Refused(f"{host} has no address ({error})") from None
        for address in addresses:
            if not self.public(address):
                raise Refused(f"{host} resolves to {address}, which is not a public address")
        if not addresses:
            raise Refused(f"{host} has no address")
        return Destination(name, port, tuple(addresses))

    def _named(self, name: str, port: int) -> bool:
        return f"{name}:{port}" in self.allowed or (port in DEFAULT_PORTS and name in self.allowed)
