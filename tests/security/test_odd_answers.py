"""A thousand odd answer files, made by seed in real sandboxes: each is classified, none blocks or raises.

The answer is read under another path for each file, many to a sandbox: the embedded agent serves that
call again, though no policy ever sees a sandbox after it.
"""

from __future__ import annotations

import asyncio
import random
import shlex
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from sandbox_rl.sandboxes.base import SandboxLimits
from sandbox_rl.sandboxes.config import EmbeddedSettings
from sandbox_rl.sandboxes.embedded import EmbeddedBackend
from sandbox_rl.types import AnswerStatus, ExecStatus

pytestmark = pytest.mark.slow

OK, MISSING = AnswerStatus.OK, AnswerStatus.MISSING
ODD, LARGE, UNDECODABLE = AnswerStatus.NOT_REGULAR, AnswerStatus.TOO_LARGE, AnswerStatus.UNDECODABLE

PER_KIND = 25
BATCHES = 4
CAP = 65_536
SLOWEST_S = 5.0
"""For one reading on a machine that has other work; a reading that blocks takes the call's 30 s."""


@dataclass(frozen=True)
class Odd:
    """A file to make and what it must be taken for.

    Args:
        setup: shell commands; `$F` is the path, whose directory is there.
        data: content that is written byte by byte instead.
        below: appended to the path when the answer is read.
    """

    status: AnswerStatus
    setup: str = ""
    data: bytes | None = None
    text: str | None = None
    below: str = ""


def written(text: str, encoding: str = "utf-8", status: AnswerStatus = OK, head: bytes = b"") -> Odd:
    return Odd(status, data=head + text.encode(encoding), text=text if status is OK else None)


def _words(rng: random.Random) -> str:
    alphabet = "abc 0123456789\n\t\r\\\"'`$(){}éßλЖ字🙂\u202e\x1b\x7f\u2028\ufeff"
    return "x" + "".join(rng.choice(alphabet) for _ in range(rng.randrange(200)))


def _noise(rng: random.Random) -> bytes:
    """No byte string with 0xff in it is UTF-8."""
    data = bytearray(rng.randbytes(rng.randrange(1, 3000)))
    data[rng.randrange(len(data))] = 0xFF
    return bytes(data)


def _broken_utf8(rng: random.Random) -> bytes:
    bad = [b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\x80", b"\xe2\x82", b"\xfe\xff\x00a"]
    return b"42 " * rng.randrange(20) + rng.choice(bad)


def _large(rng: random.Random) -> int:
    return rng.choice([CAP + 1, CAP + rng.randrange(2, 4096), rng.randrange(1 << 17, 1 << 19)])


KINDS: dict[str, Callable[[random.Random], Odd]] = {
    "words": lambda r: written(_words(r)),
    "byte-order mark": lambda r: written(_words(r), head=b"\xef\xbb\xbf"),
    "empty": lambda r: Odd(OK, data=b"", text=""),
    "white space": lambda r: written("".join(r.choice(" \n\t\r\v\f") for _ in range(r.randrange(1, 99)))),
    "as large as can be": lambda r: written(r.choice(["x", "é", "🙂"]) * (CAP // 4)),
    "at the cap": lambda r: written("é" * (CAP // 2)),
    "one long line": lambda r: written(str(r.randrange(1 << 64)) * 2000),
    "noise": lambda r: Odd(UNDECODABLE, data=_noise(r)),
    "NUL": lambda r: written(_words(r) + "\0" * r.randrange(1, 9) + "42", status=UNDECODABLE),
    "latin-1": lambda r: written("caf\xe9 " * r.randrange(1, 50), "latin-1", UNDECODABLE),
    "UTF-16": lambda r: written("42" * r.randrange(1, 50), "utf-16", UNDECODABLE),
    "UTF-32": lambda r: written("42" * r.randrange(1, 50), "utf-32", UNDECODABLE),
    "broken UTF-8": lambda r: Odd(UNDECODABLE, data=_broken_utf8(r)),
    "an archive": lambda r: Odd(UNDECODABLE, "printf %s x{1..99} | gzip -c >$F"),
    "too large": lambda r: Odd(LARGE, f"head -c {_large(r)} /dev/zero | tr '\\0' 4 >$F"),
    "sparse and huge": lambda r: Odd(LARGE, f"truncate -s {r.randrange(1, 200)}M $F"),
    "sparse and small": lambda r: Odd(UNDECODABLE, f"truncate -s {r.randrange(1, CAP)} $F"),
    "nothing": lambda r: Odd(MISSING),
    "no directory": lambda r: Odd(MISSING, below="/deeper/still"),
    "deleted while open": lambda r: Odd(MISSING, "exec 9>$F; echo 42 >&9; rm $F; exec 9>&-"),
    "a directory": lambda r: Odd(ODD, "mkdir $F"),
    "a full directory": lambda r: Odd(ODD, "mkdir $F; echo 42 >$F/answer.txt"),
    "a file as a directory": lambda r: Odd(ODD, "echo 42 >$F", below="/answer.txt"),
    "a pipe": lambda r: Odd(ODD, "mkfifo $F"),
    "a pipe with a writer": lambda r: Odd(ODD, "mkfifo $F; (exec 8<>$F; echo 42 >&8; sleep 1000) & :"),
    "a link to the answer": lambda r: Odd(ODD, "echo 42 >$F.real; ln -s $F.real $F"),
    "a link to a system file": lambda r: Odd(ODD, "ln -s " + r.choice(LINKED) + " $F"),
    "a link to nothing": lambda r: Odd(ODD, "ln -s nowhere $F"),
    "a link to itself": lambda r: Odd(ODD, "ln -s $F $F"),
    "links in a ring": lambda r: Odd(ODD, "ln -s $F.b $F; ln -s $F $F.b"),
    "a link to a directory": lambda r: Odd(ODD, "ln -s /etc $F"),
    "below a linked directory": lambda r: Odd(ODD, "mkdir $F.d; echo 42 >$F.d/a; ln -s $F.d $F", below="/a"),
    "below a link to the system": lambda r: Odd(ODD, "ln -s /etc $F", below="/passwd"),
    "a hard link": lambda r: Odd(OK, "echo 42 >$F.other; ln $F.other $F", text="42\n"),
    "executable and odd bits": lambda r: Odd(OK, "echo 42 >$F; chmod 7777 $F 2>&1 || :", text="42\n"),
    "renamed": lambda r: Odd(OK, "echo 42 >$F.tmp; mv $F.tmp $F", text="42\n"),
    "replaced": lambda r: Odd(OK, "mkfifo $F; rm $F; echo 42 >$F", text="42\n"),
    "a way of dots": lambda r: Odd(OK, "mkdir -p $F.d/e; echo 42 >$F", text="42\n"),
    "a deep way": lambda r: Odd(
        OK, "mkdir -p $F/" + DEEP + "; echo 42 >$F/" + DEEP + "a", None, "42\n", "/" + DEEP + "a"
    ),
    "a long name": lambda r: Odd(OK, f"mkdir $F; echo 42 >$F/{'n' * 255}", None, "42\n", "/" + "n" * 255),
}
LINKED = ["/etc/passwd", "/dev/zero", "/dev/null", "/proc/self/environ", "/proc/1/mem", "/dev/stdin"]
DEEP = "d/" * 60

NAMES = [
    "a",
    "two words",
    "new\nline",
    "'quote'",
    '"',
    "$(touch PWNED)",
    "`id`",
    "-rf",
    "*",
    "ä字🙂",
    "\x1b[2J",
    "~",
]
"""Put before a number: no path is code, for the shell that makes the file or for whoever reads it."""


def files(seed: int) -> list[tuple[str, str, Odd]]:
    """(path, kind, file) of each, in an order that mixes the kinds."""
    rng = random.Random(seed)
    made = [(kind, make(rng)) for kind, make in KINDS.items() for _ in range(PER_KIND)]
    rng.shuffle(made)
    return [
        (f"/testbed/odd/{rng.choice(NAMES)}{number}", kind, odd) for number, (kind, odd) in enumerate(made)
    ]


async def test_a_thousand_odd_answers_are_classified() -> None:
    everything = files(seed=20_261_123)
    assert len(everything) >= 1_000
    async with EmbeddedBackend(EmbeddedSettings(limits=SandboxLimits(pids=512))) as backend:
        batches = [everything[number::BATCHES] for number in range(BATCHES)]
        found = [
            row for batch in await asyncio.gather(*(_read(backend, b) for b in batches)) for row in batch
        ]
    wrong = [
        (kind, path, got, odd.status) for path, kind, odd, got, _ in found if got.status is not odd.status
    ]
    assert not wrong, wrong[:5]
    for path, kind, odd, got, seconds in found:
        assert got.text == (odd.text or ""), (kind, path)
        assert seconds < SLOWEST_S, (kind, path)
    assert set(Counter(got.status for *_, got, _ in found)) == set(AnswerStatus)


async def _read(backend, batch):
    """(path, kind, file, answer, seconds) of each."""
    async with backend.sandbox() as sandbox:
        await sandbox.exec("mkdir -p /testbed/odd", timeout=60)
        for path, _, odd in batch:
            if odd.data is not None:
                await sandbox.write_file(path, odd.data)
        script = "\n".join(f"F={shlex.quote(p)}\n{_quoted(o.setup)}" for p, _, o in batch if o.setup)
        done = await sandbox.exec(f"set -e\nset +m\n{script}\necho all", timeout=60)
        assert done.status is ExecStatus.OK, done
        assert done.stdout.head.endswith(b"all\n"), (done.stdout, done.stderr)
        rows = []
        for path, kind, odd in batch:
            started = time.monotonic()
            answer = await sandbox.read_answer(path + odd.below)
            rows.append((path, kind, odd, answer, time.monotonic() - started))
    return rows


def _quoted(setup: str) -> str:
    """`$F` in double quotes, whatever stands behind it: the names hold spaces and line ends."""
    return setup.replace("$F", '"$F"')
