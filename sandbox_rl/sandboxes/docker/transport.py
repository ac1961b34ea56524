"""Where an engine is, and streams to its containers: the agent's frames inside the engine's own."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sandbox_rl.errors import ConfigError, SandboxFault
from sandbox_rl.sandboxes.protocol import AgentChannel

LOCAL_SOCKET = "/var/run/docker.sock"
ATTACH_TIMEOUT_S = 30.0
KEY_FILES = ("ca.pem", "cert.pem", "key.pem")
_HEADER = 8  # stream (1 output, 2 errors), three zeros, length of what follows, big endian
_OUTPUT = 1
LONGEST_HEAD = 16 << 10

LOADER = """\
import os
def take(n):
    data = b""
    while len(data) < n:
        more = os.read(0, n - len(data))
        if not more:
            os._exit(0)
        data += more
    return data
exec(compile(take(int.from_bytes(take(4), "big")), "<agent>", "exec"))
"""
"""What an image's Python runs: it takes the agent's source from standard input and becomes the agent."""


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """One of: the path of a unix socket; host and port, with TLS if there are `keys`; an ssh URL.

    Args:
        shown: as the user wrote it, for messages.
        keys: directory with `ca.pem`, `cert.pem` and `key.pem`.
        verify: whether the engine must have a certificate for its name from the authority `ca.pem`.
    """

    shown: str
    socket: str = ""
    host: str = ""
    port: int = 0
    keys: Path | None = None
    verify: bool = True
    ssh: str = ""

    @property
    def url(self) -> str:
        """As the SDK wants it; of an ssh address there is none before it has been forwarded."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"unix://{self.socket}" if self.socket else f"tcp://{host}:{self.port}"

    def tls(self) -> ssl.SSLContext | None:
        """For our own connections. Raises ConfigError if a file is no key or certificate."""
        if self.keys is None:
            return None
        ca, cert, key = (str(self.keys / name) for name in KEY_FILES)
        try:
            context = ssl.create_default_context(cafile=ca if self.verify else None)
            if not self.verify:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.load_cert_chain(cert, key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"sandbox.tls: the keys in {self.keys} cannot be used ({error}); expected "
                f"{', '.join(KEY_FILES)} in PEM form"
            ) from None
        return context


def find_engine(
    host: str = "", tls: Path | None = None, *, environment: Mapping[str, str] = os.environ
) -> EngineAddress:
    """The engine at `host`, or where the environment says, as the docker command would find it.

    `DOCKER_TLS_VERIFY` and `DOCKER_CERT_PATH` count for tcp:// unless `tls` names a directory.

    Raises:
        ConfigError: an address of no known kind, or keys that are missing.
    """
    shown = host or environment.get("DOCKER_HOST", "")
    scheme, found, rest = (shown or f"unix://{LOCAL_SOCKET}").partition("://")
    if scheme == "unix" and rest.startswith("/"):
        return EngineAddress(shown or "the local socket", socket=rest)
    if scheme == "ssh" and rest:
        return EngineAddress(shown, ssh=shown)
    name, colon, port = rest.rstrip("/").rpartition(":")
    if scheme not in ("tcp", "http", "https") or not (found and colon and name and port.isdigit()):
        raise ConfigError(
            f"sandbox.host: {shown!r} is no address of an engine; expected unix:///PATH, tcp://HOST:PORT or "
            "ssh://[USER@]HOST[:PORT][/PATH/OF/docker.sock]"
        )
    verify = True
    if tls is None and (environment.get("DOCKER_TLS_VERIFY") or environment.get("DOCKER_CERT_PATH")):
        tls = Path(environment.get("DOCKER_CERT_PATH") or Path.home() / ".docker")
        verify = environment.get("DOCKER_TLS_VERIFY") != ""
    if tls is None and scheme == "https":
        raise ConfigError(f"sandbox.tls: {shown} needs keys; name the directory with {', '.join(KEY_FILES)}")
    missing = [file for file in KEY_FILES if tls is not None and not (tls / file).is_file()]
    if missing:
        raise ConfigError(f"sandbox.tls: {tls} has no {missing[0]}; expected {', '.join(KEY_FILES)}")
    return EngineAddress(shown, host=name.strip("[]"), port=int(port), keys=tls, verify=verify)


class AttachedStream(asyncio.Protocol):
    """Hands what the container says on its standard output to the channel, piece by piece.

    The engine's answer to the request for a stream comes first. Nothing is buffered here but that and the
    rest of a header, so the channel's own bounds hold.
    """

    def __init__(self, channel: AgentChannel) -> None:
        self.channel = channel
        self.upgraded: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """What the engine says instead of giving the stream; "" when it does."""
        self._head: bytearray | None = bytearray()
        self._header = bytearray()
        self._left = 0
        self._wanted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.channel.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += data
            data = self._rest(self._head)
        at = 0
        while at < len(data) and not self.channel.dead:
            if self._left:
                piece = data[at : at + self._left]
                self._left -= len(piece)
                at += len(piece)
                if self._wanted:
                    self.channel.data_received(piece)
                continue
            need = _HEADER - len(self._header)
            self._header += data[at : at + need]
            at += need
            if len(self._header) == _HEADER:
                self._wanted = self._header[0] == _OUTPUT
                self._left = int.from_bytes(self._header[4:], "big")
                self._header.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle(f"it closed the connection ({exc})" if exc else "it closed the connection")
        self.channel.connection_lost(exc)

    def _rest(self, received: bytearray) -> bytes:
        """What follows the engine's answer, once that is whole."""
        head, end, rest = received.partition(b"\r\n\r\n")
        if not end and len(received) < LONGEST_HEAD:
            return b""
        status = bytes(head.partition(b"\r\n")[0][:200]).decode("latin-1")
        if not re.match(r"HTTP/1\.[01] (101|200) ", status + " "):
            said = bytes(rest[:300]).decode("utf-8", "replace").strip()
            self._settle(" ".join(f"{status} {said}".split()) or "an empty answer")
            return b""
        self._head = None
        self._settle("")
        return bytes(rest)

    def _settle(self, refusal: str) -> None:
        if not self.upgraded.done():
            self.upgraded.set_result(refusal)


async def attach(
    address: EngineAddress,
    context: ssl.SSLContext | None,
    version: str,
    container: str,
    channel: AgentChannel,
) -> asyncio.Transport:
    """Connect `channel` to a container that has not been started: to its input, and from its output.

    The SDK's own attach hands out a plain socket, which TLS has none of; this is the same request on a
    connection of the event loop's.

    Args:
        channel: closing it, which is its owner's part, closes the connection.
        version: of the engine's API, such as "1.41".

    Raises:
        SandboxFault: the engine refused, or is gone.
    """
    loop = asyncio.get_running_loop()
    stream = AttachedStream(channel)
    try:
        async with asyncio.timeout(ATTACH_TIMEOUT_S):
            if address.socket:
                transport, _ = await loop.create_unix_connection(lambda: stream, address.socket)
            else:
                transport, _ = await loop.create_connection(
                    lambda: stream, address.host, address.port, ssl=context
                )
            transport.write(
                f"POST /v{version}/containers/{container}/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\n"
                "Host: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n".encode()
            )
            refusal = await stream.upgraded
    except (OSError, TimeoutError) as error:
        raise SandboxFault(f"the Docker engine at {address.shown} failed: {error or 'no answer'}") from None
    if refusal:
        raise SandboxFault(f"the Docker engine at {address.shown} does not attach: {refusal}")
    return transport


async def until_gone(address: EngineAddress, context: ssl.SSLContext | None, version: str) -> None:
    """Returns once the engine has ended, by a connection that it keeps for as long as it lives.

    Raises:
        OSError, TimeoutError: nobody answers there.
    """
    async with asyncio.timeout(ATTACH_TIMEOUT_S):
        if address.socket:
            reader, writer = await asyncio.open_unix_connection(address.socket)
        else:
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    try:
        of_itself = "%7B%22type%22%3A%5B%22daemon%22%5D%7D"  # {"type":["daemon"]}: about nothing else
        writer.write(f"GET /v{version}/events?filters={of_itself} HTTP/1.1\r\nHost: docker\r\n\r\n".encode())
        while await reader.read(1 << 16):
            pass
    finally:
        writer.transport.abort()
