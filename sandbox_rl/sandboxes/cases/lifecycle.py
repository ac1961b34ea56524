"""Cases about a sandbox's life: destroying it from inside, and forging failures of the machine."""

from __future__ import annotations

from sandbox_rl.sandboxes.base import ANSWER_FILE
from sandbox_rl.sandboxes.cases.checks import (
    SOON_S,
    all_of,
    answer_is,
    elsewhere_absent,
    exit_code,
    present,
    returned_within,
    status,
)
from sandbox_rl.sandboxes.cases.model import Case
from sandbox_rl.types import ExecStatus

_FORGED = (
    'OCI runtime exec failed: exec failed: unable to start container process: exec: "timeout": '
    "executable file not found in $PATH: unknown"
)

LIFECYCLE = (
    Case(
        "LIF-01",
        "A command ends every process of its sandbox.",
        "A typed result soon; the sandbox works on or says that it is dead; others live.",
        "kill -9 -1; kill -9 1 2>/dev/null; echo alive",
        all_of(
            status(ExecStatus.OK, ExecStatus.SANDBOX_DEAD),
            returned_within(SOON_S),
        ),
    ),
    Case(
        "LIF-01b",
        "A command stops and ends the sandbox's first process.",
        "No signal from inside reaches it.",
        "for s in TERM INT HUP STOP USR1 SEGV ABRT KILL; do kill -$s 1 2>/dev/null; done; sleep .2; echo end",
        all_of(status(ExecStatus.OK), present("end")),
    ),
    Case(
        "LIF-01c",
        "A command deletes everything that it can.",
        "The host and other sandboxes keep their files; the result is typed.",
        "rm -rf --no-preserve-root /home /tmp /dev/shm /testbed /var/tmp 2>/dev/null; echo gone",
        all_of(status(ExecStatus.OK), elsewhere_absent("LOST")),
        elsewhere="for d in /tmp /testbed /usr /dev/shm; do [ -d $d ] || echo LOST $d; done; echo end",
        timeout=30,
    ),
    *(
        Case(
            f"LIF-06{letter}",
            f"A command pretends, by exit code {code}, that the machine has failed.",
            "An ordinary result with this exit code; the answer is scored.",
            f"echo 42 >{ANSWER_FILE}; echo '{text}'; exit {code}",
            all_of(status(ExecStatus.OK), exit_code(code), answer_is("42\n")),
            reads_answer=True,
        )
        for letter, code, text in (
            ("", 127, _FORGED),
            ("b", 124, 'service "default" is not running'),
            ("c", 125, "Error response from daemon: No such container"),
            ("d", 126, "sandbox_dead"),
            ("e", 137, "OOMKilled"),
            ("f", 143, "SandboxFault: the spawner is gone"),
            ("g", 255, "Connection reset by peer"),
        )
    ),
)
