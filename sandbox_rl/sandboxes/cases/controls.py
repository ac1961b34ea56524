"""Positive controls: honest work that must succeed under the very limits of the cases."""

# ruff: noqa: E501 (commands stand as they are sent)
from __future__ import annotations

from sandbox_rl.sandboxes.base import ANSWER_FILE, INPUT_DIR, WORKING_DIR
from sandbox_rl.sandboxes.cases.checks import (
    all_of,
    answer_is,
    exit_code,
    holds,
    present,
    status,
    then_stdout,
)
from sandbox_rl.sandboxes.cases.model import Case, Check
from sandbox_rl.types import ExecStatus

_OK = all_of(status(ExecStatus.OK), exit_code(0))


def _works(id: str, title: str, command: str, *words: str, timeout: float = 60.0) -> Case:
    check: Check = all_of(_OK, present(*words))
    return Case(id, title, "It works.", command, check, timeout=timeout)


CONTROLS = (
    _works(
        "CTL-01",
        "An honest command uses 300 MiB of memory.",
        "python3 -c 'b=b\"x\"*(300<<20); print(len(b))'",
        str(300 << 20),
    ),
    _works(
        "CTL-02",
        "An honest command writes 10,000 small files.",
        f"mkdir {WORKING_DIR}/m && cd {WORKING_DIR}/m && python3 -c 'for i in range(10000): "
        'open(str(i),"w").write("x")\' && ls | wc -l',
        "10000",
    ),
    _works(
        "CTL-03",
        "An honest command writes a file of 100 MiB.",
        f"dd if=/dev/zero of={WORKING_DIR}/big bs=1M count=100 2>/dev/null && stat -c %s {WORKING_DIR}/big",
        str(100 << 20),
    ),
    _works(
        "CTL-04",
        "An honest command runs 20 processes at once.",
        "for i in $(seq 20); do (sleep 0.5; echo done) & done; wait; echo all",
        "all",
    ),
    _works(
        "CTL-05",
        "An honest server and its client connect over the sandbox's own 127.0.0.1.",
        "python3 - <<'EOF'\nimport socket,threading\ns=socket.create_server(('127.0.0.1',0))\n"
        "threading.Thread(target=lambda: s.accept()[0].sendall(b'hello'),daemon=True).start()\n"
        "print(socket.create_connection(s.getsockname(),30).recv(9))\nEOF",
        "hello",
    ),
    _works(
        "CTL-06",
        "An honest command computes for 4 s.",
        "python3 -c 'import time\nwhile time.process_time()<4: pass\nprint(\"burnt\")'",
        "burnt",
    ),
    _works(
        "CTL-07",
        "An honest command reads and prints UTF-8.",
        "echo 'é€😀 κόσμε' | cat; python3 -c 'print(\"é€😀\")'",
        "é€😀 κόσμε",
    ),
    Case(
        "CTL-08",
        "An honest command prints to standard error and ends with an exit code of its own.",
        "Both arrive.",
        "echo out; echo err >&2; exit 9",
        all_of(
            exit_code(9),
            holds("out", lambda s: s.first.stdout.head == b"out\n"),
            holds("err", lambda s: s.first.stderr.head == b"err\n"),
        ),
    ),
    Case(
        "CTL-09",
        "An honest background job goes on after the call that started it.",
        "It is alive in the next call.",
        "sleep 30 >/dev/null 2>&1 & echo $! >/tmp/job; echo started",
        all_of(_OK, then_stdout("alive")),
        then=("kill -0 $(cat /tmp/job) && echo alive",),
    ),
    Case(
        "CTL-10",
        "An honest command writes the answer file.",
        "It is read as written.",
        f"printf 42 >{ANSWER_FILE}",
        all_of(_OK, answer_is("42")),
        reads_answer=True,
    ),
    _works(
        "CTL-11",
        "An honest command reads the task's files.",
        f"cat {INPUT_DIR}/question.txt; cp {INPUT_DIR}/question.txt q",
        "6*7?",
    ),
    _works(
        "CTL-12",
        "Honest commands use the ordinary tools of a shell and of Python.",
        "python3 -c 'import json,random,math,re,subprocess,tempfile,threading,multiprocessing as m\n"
        'print(subprocess.run(["echo","sub"],capture_output=True,text=True).stdout, '
        'm.get_context("fork").Pool(2).map(abs,[-1,2]))\'; seq 3 | sort -r | head -1 | grep 3 | sed s/3/three/; '
        "d=$(mktemp -d) && echo x >$d/f && tar -C $d -cf - f | tar -tf -",
        "sub",
        "[1, 2]",
        "three",
    ),
)
