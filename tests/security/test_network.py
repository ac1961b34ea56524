"""The network of sandboxes that have one: what the filtering proxy lets through, and what never."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest
from pydantic import ValidationError

from sandbox_rl.sandboxes.base import Sandbox, SandboxBackend
from sandbox_rl.sandboxes.cases import ALL_CASES, Case, HostWitness, run_case
from sandbox_rl.sandboxes.config import EmbeddedSettings, NetworkLimits
from sandbox_rl.sandboxes.egress.rules import NetworkRules, Refused, is_public
from sandbox_rl.sandboxes.embedded import EmbeddedBackend
from sandbox_rl.types import ExecResult, ExecStatus

from ..contract.backends import ENGINE_VARIABLE, ISOLATING
from ..docker_engine import settings_for
from .host_probe import leaked, probe

SERVER = "127.0.0.2"
"""The one address that the tests count as public; what must stay closed listens on 127.0.0.1."""

PRIVATE = (
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "169.254.1.1", "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    *("192.0.2.1", "198.18.0.1", "198.51.100.7", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
    *(
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
    ),
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0:10.0.0.1", "::127.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "2002:7f00:1::1", "2002:a9fe:a9fe::"),
    *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "localhost", "", "2130706433", "127.1", "2001:db8::1"),
)
PUBLIC = ("1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "64:ff9b::101:101", "2002:101:101::1")


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_stay_closed(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        *("2130706433", "0177.0.0.1", "0x7f.0.0.1", "0x7f000001", "127.1", "017700000001", "1.1.1.1.1", "0"),
        *("127.0.0.1", "127.0.0.1.", "[::1]", "::1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[fe80::1%1]"),
        *("LOCALHOST", "localhost.", "a..b", "-", "a b", "a/b", "a@b", "", ".", "\u2460.1.1.1", "x" * 300),
    ],
)
async def test_no_spelling_of_a_private_address_gets_through(host: str) -> None:
    """With every name allowed and the system's resolver."""
    with pytest.raises(Refused):
        await NetworkRules("full").destination(host, 80)


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["1.1.1.1", "127.0.0.1"], ["::ffff:10.0.0.1"], []])
async def test_a_name_is_judged_by_all_its_addresses(addresses: list[str]) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return addresses

    rules = NetworkRules("allowlist", ("friend.test",), resolve=resolve)
    with pytest.raises(Refused):
        await rules.destination("friend.test", 443)


async def test_ports_and_names_are_exact() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["1.1.1.1"]

    rules = NetworkRules("allowlist", ("friend.test", "other.test:8443"), resolve=resolve)
    for host, port in (("friend.test", 80), ("FRIEND.test.", 443), ("other.test", 8443)):
        assert (await rules.destination(host, port)).addresses == ("1.1.1.1",)
    refused = (("friend.test", 22), ("other.test", 443), ("x.friend.test", 443), ("friend.test.evil", 443))
    for host, port in (*refused, ("1.1.1.1", 443), ("friend.test", 0), ("friend.test", 65_536 + 443)):
        with pytest.raises(Refused):
            await rules.destination(host, port)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"network": "allowlist"}, "needs hosts"),
        ({"allowlist": ["example.org"]}, "set network: allowlist"),
        ({"network": "allowlist", "allowlist": ["https://example.org"]}, "'https://example.org' is no host"),
        ({"network": "allowlist", "allowlist": ["10.0.0.1"]}, "'10.0.0.1' is no host"),
        ({"network": "allowlist", "allowlist": ["*.org"]}, "'*.org' is no host"),
        ({"network": "on"}, "'off', 'allowlist' or 'full'"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EmbeddedSettings.model_validate(values)
    assert said in str(caught.value)


def test_a_bare_off_of_yaml_is_off() -> None:
    assert EmbeddedSettings.model_validate({"network": False}).network == "off"


@dataclass
class World:
    """A server that counts as public, a listener of the host's that must stay alone, and a resolver.

    Every name is the server's, except `inside.test` (the host), and `moves.test`, which is the server's
    once and the host's from then on.
    """

    port: int = 0
    heads: list[bytes] = field(default_factory=list)
    touched: int = 0
    resolved: list[str] = field(default_factory=list)

    async def resolve(self, host: str, port: int) -> list[str]:
        moved = host == "moves.test" and host in self.resolved
        self.resolved.append(host)
        return ["127.0.0.1" if host == "inside.test" or moved else SERVER]

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            if b"GET /endless" in self.heads[-1]:
                writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                while True:
                    writer.write(bytes(1 << 16))
                    await writer.drain()
            if b"GET /silent" in self.heads[-1]:
                await reader.read()
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nserved\n")
            await writer.drain()
        except (OSError, EOFError):
            return
        finally:
            writer.close()

    async def touch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.touched += 1
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nHOST-SECRET\n")
        writer.close()


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    made = World()
    async with AsyncExitStack() as stack:
        while not made.port:
            server = await stack.enter_async_context(await asyncio.start_server(made.answer, SERVER, 0))
            port = server.sockets[0].getsockname()[1]
            with suppress(OSError):  # there somebody else may have the same port
                inside = await asyncio.start_server(made.touch, "127.0.0.1", port)
                await stack.enter_async_context(inside)
                made.port = port
        yield made


@pytest.fixture(params=ISOLATING)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "docker":
        request.getfixturevalue("engine")
    return str(request.param)


def backend(kind: str, rules: NetworkRules, **limits: float) -> SandboxBackend:
    values = {"network_limits": NetworkLimits(**limits)}
    if kind == "docker":
        from sandbox_rl.sandboxes.docker.backend import DockerBackend

        return DockerBackend(settings=settings_for(os.environ[ENGINE_VARIABLE], **values), rules=rules)
    return EmbeddedBackend(settings=EmbeddedSettings(**values), rules=rules)


def allowing(made: World, *names: str) -> NetworkRules:
    allowed = tuple(f"{name}:{made.port}" for name in names)
    return NetworkRules("allowlist", allowed, resolve=made.resolve, public=lambda address: address == SERVER)


FETCH = "import sys,urllib.request as u; print(u.urlopen(sys.argv[1], timeout=30).read().decode())"
TUNNEL = """
import socket, sys
s = socket.create_connection(("127.0.0.1", 3128), 30); s.settimeout(30)
s.sendall(f"CONNECT {sys.argv[1]} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n".encode())
print(s.recv(4096).split(b"\\r\\n")[0])
s.sendall(b"GET /t HTTP/1.1\\r\\nHost: any\\r\\n\\r\\n")
while data := s.recv(4096): print(data)
"""


async def python(sandbox: Sandbox, program: str, *arguments: str, timeout: float = 60) -> str:
    words = " ".join(f"'{argument}'" for argument in arguments)
    result: ExecResult = await sandbox.exec(
        f"python3 - {words} 2>&1 <<'EOF'\n{program}\nEOF", timeout=timeout
    )
    assert result.status is ExecStatus.OK
    return (result.stdout.head + result.stdout.tail).decode()


async def test_a_named_host_is_open_by_requests_and_by_tunnels(kind: str) -> None:
    async with world() as made, backend(kind, allowing(made, "ok.test")) as entered:
        assert entered.info.details["network"] == f"allowlist: ok.test:{made.port}"
        async with entered.sandbox() as sandbox:
            assert "served" in await python(sandbox, FETCH, f"http://ok.test:{made.port}/a?b=c")
            assert made.heads[-1].startswith(b"GET /a?b=c HTTP/1.1\r\n")
            assert f"Host: ok.test:{made.port}\r\n".encode() in made.heads[-1]
            said = await python(sandbox, TUNNEL, f"ok.test:{made.port}")
            assert "200 Connection established" in said
            assert "served" in said


ATTACKS = (
    "http://127.0.0.1:{port}/",
    "http://inside.test:{port}/",
    "http://2130706433:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://ok.test@127.0.0.1:{port}/",
    "http://localhost:{port}/",
)


async def attack(sandbox: Sandbox, port: int) -> str:
    """By requests, by tunnels, around the proxy, and by a name that moves after its check."""
    said = ""
    for url in ATTACKS:
        url = url.format(port=port)
        said += await python(sandbox, "import os; os.environ['no_proxy'] = ''\n" + FETCH, url)
        said += await python(sandbox, TUNNEL, url.removeprefix("http://").removesuffix("/"))
    direct = "import socket, sys; print(socket.create_connection((sys.argv[1], sys.argv[2]), 2).recv(99))"
    for address in ("127.0.0.1", SERVER, "169.254.169.254", "1.1.1.1"):
        said += await python(sandbox, direct, address, str(port))
    for _ in range(2):
        said += await python(sandbox, FETCH, f"http://moves.test:{port}/")
    return said


async def test_everything_else_stays_closed(kind: str) -> None:
    async with world() as made:
        names = ("ok.test", "inside.test", "moves.test")
        async with backend(kind, allowing(made, *names)) as entered, entered.sandbox() as sandbox:
            said = await attack(sandbox, made.port)
        assert made.touched == 0
        assert "HOST-SECRET" not in said
        assert said.count("served") == 1, "only the first request for moves.test may be"
        assert made.resolved.count("moves.test") == 2, "a name is looked up once for each request"


async def test_the_attack_succeeds_without_the_filter() -> None:
    """Through a proxy without the filter the same attack reaches the host."""
    async with world() as made:
        rules = NetworkRules("full", resolve=made.resolve, public=lambda address: True)
        async with backend("embedded", rules) as entered, entered.sandbox() as sandbox:
            said = await attack(sandbox, made.port)
        assert made.touched >= 5
        assert "HOST-SECRET" in said


async def test_full_is_announced_and_still_not_the_host(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async with world() as made:
        rules = NetworkRules("full", resolve=made.resolve, public=lambda address: address == SERVER)
        async with backend(kind, rules) as entered, entered.sandbox() as sandbox:
            assert "served" in await python(sandbox, FETCH, f"http://anything.test:{made.port}/")
            await attack(sandbox, made.port)
        assert made.touched == 0
    assert any("sandbox.network is full" in record.message for record in caplog.records)


async def test_every_case_of_isolation_holds_with_a_network() -> None:
    cases = [case for case in ALL_CASES if case.id.startswith("ISO") and case.id != "ISO-02"]  # variables
    free = asyncio.Semaphore(16)
    with HostWitness() as witness:
        async with EmbeddedBackend(rules=NetworkRules("allowlist", ("example.org",))) as entered:

            async def one(case: Case) -> tuple[str, ...]:
                async with free:
                    return (await run_case(entered, case, witness, patience=6)).problems

            found = await asyncio.gather(*map(one, cases))
    assert not {case.id: problems for case, problems in zip(cases, found, strict=True) if problems}


async def test_connections_bytes_and_time_are_bounded(kind: str) -> None:
    crowd = """
import select, socket, sys, time
opened = [socket.create_connection(("127.0.0.1", 3128), 30) for _ in range(12)]
for s in opened:
    s.sendall(f"CONNECT {sys.argv[1]} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n".encode())
while len(select.select(opened, [], [], 0)[0]) < 4: time.sleep(.05)
time.sleep(1)
print("TUNNELS", len(select.select(opened, [], [], 0)[0]))
"""
    async with world() as made:
        limits = {"connections": 4, "megabytes": 3, "seconds": 100.0}
        async with backend(kind, allowing(made, "ok.test"), **limits) as entered:
            async with entered.sandbox() as sandbox:
                assert "TUNNELS 4" in await python(sandbox, crowd, f"ok.test:{made.port}")
                much = f"curl -s -m 50 http://ok.test:{made.port}/endless | wc -c"
                count = int((await sandbox.exec(much, timeout=60)).stdout.head)
                assert 1 << 20 < count <= 3 << 20
                again = f"curl -s -m 50 http://ok.test:{made.port}/ | wc -c"
                assert int((await sandbox.exec(again, timeout=60)).stdout.head) == 0
            async with entered.sandbox() as fresh:
                assert "served" in await python(fresh, FETCH, f"http://ok.test:{made.port}/")
        async with backend(kind, allowing(made, "ok.test"), seconds=2.0) as entered:
            async with entered.sandbox() as sandbox:
                slow = f"curl -s -m 50 http://ok.test:{made.port}/silent; echo code $?"
                code = int((await sandbox.exec(slow, timeout=60)).stdout.head.rpartition(b"code ")[2])
                assert code != 28, "curl's own time was over before the proxy's"


async def test_many_policies_leave_the_host_its_descriptors() -> None:
    """Eight sandboxes want 512 descriptors of a process that may open 400 in all."""
    hold = """
import socket, sys, time
opened = [socket.create_connection(("127.0.0.1", 3128), 30) for _ in range(32)]
for s in opened:
    s.sendall(f"CONNECT {sys.argv[1]} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n".encode())
time.sleep(60)
"""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with world() as made:
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
        try:
            async with backend("embedded", allowing(made, "ok.test")) as entered, AsyncExitStack() as stack:
                for _ in range(8):
                    sandbox = await stack.enter_async_context(entered.sandbox())
                    await sandbox.write_file("/tmp/hold.py", hold.encode())
                    hidden = ">/dev/null 2>&1 &"
                    await sandbox.exec(f"python3 /tmp/hold.py ok.test:{made.port} {hidden}", timeout=60)
                await asyncio.sleep(2)
                assert len(os.listdir("/proc/self/fd")) < 300
                async with entered.sandbox() as another:
                    assert (await another.exec("echo ok", timeout=60)).stdout.head == b"ok\n"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


HEADS = (
    b"",
    b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://ok.test:{port}/ HTTP/1.1\r\n\r\n",
    b"GET http://ok.test:{port}/ HTTP/1.1\nHost: x\n\nGET / HTTP/1.1\r\n\r\n",
    b"GET http://ok.test:{port}/ HTTP/1.1\r\nHost: x\r\nno field\r\n\r\n",
    b"GET http://ok.test:{port}/\nHost: x HTTP/1.1\r\n\r\n",
    b"GET http://ok.test:{port}/ HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n",
    b"GET ftp://ok.test:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT ok.test HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT ok.test:x HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT ok.test:99999 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT \xff\xfe:{port} HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\xff" * 500 + b"\r\n\r\n",
    b"A" * 100_000,
    b"GET http://ok.test:{port}/ HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
)


async def test_malformed_requests_reach_nobody(caplog: pytest.LogCaptureFixture) -> None:
    program = "import socket\nfor head in HEADS:\n s = socket.create_connection(('127.0.0.1', 3128), 30)\n"
    program += " s.settimeout(30)\n try:\n  s.sendall(head); s.shutdown(1); print(s.recv(200)[:30])\n"
    program += " except OSError as e: print(e)\n"
    async with world() as made, backend("embedded", allowing(made, "ok.test")) as entered:
        async with entered.sandbox() as sandbox:
            heads = [head.replace(b"{port}", str(made.port).encode()) for head in HEADS]
            said = await python(sandbox, f"HEADS = {heads!r}\n{program}", timeout=60)
            assert "HTTP/1.1 200" not in said
            assert made.heads == []
            assert "served" in await python(sandbox, FETCH, f"http://ok.test:{made.port}/")
            with caplog.at_level(logging.WARNING):
                flood = (
                    "import urllib.request as u\nfor i in range(100):\n try: u.urlopen(f'http://{i}.test/')\n"
                )
                await python(sandbox, flood + " except OSError: pass", timeout=60)
            assert 0 < sum("network refused" in record.message for record in caplog.records) <= 20


async def test_nothing_of_the_network_is_left(kind: str) -> None:
    """With tunnels that stand open while their sandboxes end."""
    async with world() as made, backend(kind, allowing(made, "ok.test")) as entered:

        async def life() -> None:
            async with entered.sandbox() as sandbox:
                hold = f"(curl -s http://ok.test:{made.port}/silent & sleep 60) >/dev/null 2>&1 &"
                await sandbox.exec(hold + " sleep 0.2", timeout=60)

        for _ in range(3):  # connections to an engine and threads are as many as were ever needed at once
            await asyncio.gather(*(life() for _ in range(4)))
        before = probe()
        for _ in range(5):
            await asyncio.gather(*(life() for _ in range(4)))
        assert not leaked(before)


async def test_without_a_network_nothing_listens() -> None:
    async with EmbeddedBackend() as entered, entered.sandbox() as sandbox:
        program = "import socket; print(socket.socket().connect_ex(('127.0.0.1', 3128)))"
        assert int(await python(sandbox, program)) == socket.errno.ECONNREFUSED  # type: ignore[attr-defined]
        assert "proxy" not in (await sandbox.exec("env", timeout=60)).stdout.head.decode().lower()
