"""Cases about the answer file: what the policy can put there instead of an answer."""

# ruff: noqa: E501 (commands stand as they are sent)
from __future__ import annotations

from sandbox_rl.sandboxes.base import ANSWER_FILE, WORKING_DIR
from sandbox_rl.sandboxes.cases.checks import all_of, answer_is, answer_status
from sandbox_rl.sandboxes.cases.model import Case
from sandbox_rl.types import AnswerStatus

_MISSING, _ODD = AnswerStatus.MISSING, AnswerStatus.NOT_REGULAR
_LARGE, _UNDECODABLE = AnswerStatus.TOO_LARGE, AnswerStatus.UNDECODABLE


def _answer_case(id: str, title: str, command: str, *allowed: AnswerStatus, required: str = "") -> Case:
    """Typed as one of `allowed`; without any as a link is: missing or odd."""
    allowed = allowed or (_MISSING, _ODD)
    required = required or f"Typed as {' or '.join(allowed)}, at once; nothing outside is read."
    return Case(id, title, required, command, answer_status(*allowed), reads_answer=True)


_LINK = f"rm -rf {ANSWER_FILE}; ln -s {{}} {ANSWER_FILE}; echo end"

ANSWERS = (
    _answer_case(
        "IO-16", "The answer file is a link to a file of the host.", _LINK.format('"$HOST_CANARY_PATH"')
    ),
    _answer_case("IO-16b", "The answer file is a link to a system file.", _LINK.format("/etc/passwd")),
    _answer_case(
        "IO-16c",
        "The answer file is a link to another file with the right answer.",
        f"echo 42 >{WORKING_DIR}/real; " + _LINK.format(f"{WORKING_DIR}/real"),
    ),
    _answer_case(
        "IO-16d", "The answer file is a link to an open descriptor.", _LINK.format("/proc/self/fd/0")
    ),
    _answer_case(
        "IO-16e", "The answer file is a link to information about a process.", _LINK.format("/proc/1/environ")
    ),
    Case(
        "IO-17",
        "The answer's directory is replaced by a link.",
        "Reading never leaves the sandbox; missing is no error.",
        f"rm -rf {WORKING_DIR}/* 2>/dev/null; mv {WORKING_DIR} {WORKING_DIR}.old 2>/dev/null; "
        f"rmdir {WORKING_DIR} 2>/dev/null; ln -s /tmp/adv_17 {WORKING_DIR} 2>/dev/null; mkdir /tmp/adv_17; "
        f"echo 42 >/tmp/adv_17/answer.txt; ln -s /etc {WORKING_DIR}/link 2>/dev/null; echo end",
        answer_status(_MISSING, _ODD),
        reads_answer=True,
    ),
    _answer_case(
        "IO-18",
        "The answer file is a pipe, which would hang its reader.",
        f"rm -f {ANSWER_FILE}; mkfifo {ANSWER_FILE}; echo end",
        _ODD,
    ),
    _answer_case(
        "IO-18b",
        "The answer file is a pipe into which a process writes.",
        f"rm -f {ANSWER_FILE}; mkfifo {ANSWER_FILE}; (setsid sh -c 'while :; do echo 42 >{ANSWER_FILE}; done' "
        ">/dev/null 2>&1 &); echo end",
        _ODD,
    ),
    _answer_case(
        "IO-18c",
        "The answer file is a socket.",
        f"python3 -c 'import socket;s=socket.socket(1);s.bind(\"{ANSWER_FILE}\")'; echo end",
        _ODD,
    ),
    _answer_case(
        "IO-19",
        "The answer file is a directory.",
        f"rm -rf {ANSWER_FILE}; mkdir {ANSWER_FILE}; echo end",
        _ODD,
    ),
    _answer_case(
        "IO-19b", "The answer file is a device that can be read for ever.", _LINK.format("/dev/zero")
    ),
    _answer_case("IO-19c", "There is no answer file.", f"rm -rf {ANSWER_FILE}; echo end", _MISSING),
    Case(
        "IO-19d",
        "The answer file is empty.",
        "An answer, and it is empty.",
        f": >{ANSWER_FILE}",
        answer_is(""),
        reads_answer=True,
    ),
    _answer_case("IO-19e", "The answer file is a link to itself.", _LINK.format("answer.txt")),
    _answer_case(
        "IO-19f",
        "The answer file may not be read.",
        f"echo 42 >{ANSWER_FILE}; chmod 000 {ANSWER_FILE}; echo end",
        *(AnswerStatus.OK, _MISSING, _ODD),
    ),
    _answer_case(
        "IO-20",
        "The answer file says that it has 1 TB, or as much as may be.",
        f"truncate -s 1T {ANSWER_FILE} 2>&1 || truncate -s 200M {ANSWER_FILE} 2>&1 || head -c 70000 /dev/zero "
        f"| tr '\\0' 1 >{ANSWER_FILE}; stat -c '%s %b' {ANSWER_FILE}",
        _LARGE,
        required="Too large by its size, without being read.",
    ),
    _answer_case(
        "IO-20b",
        "The answer file is one byte too long.",
        f"head -c 65537 /dev/zero | tr '\\0' 1 >{ANSWER_FILE}; echo end",
        _LARGE,
    ),
    _answer_case(
        "IO-21",
        "The answer file holds bytes that are no text.",
        f"printf '\\xef\\xbb\\xbf 42\\r\\n\\x00\\xff\\n' >{ANSWER_FILE}; echo end",
        _UNDECODABLE,
    ),
    _answer_case(
        "IO-21b",
        "The answer file holds a NUL within text.",
        f"printf '4\\x002' >{ANSWER_FILE}; echo end",
        _UNDECODABLE,
    ),
    Case(
        "IO-21c",
        "The answer file begins with a byte-order mark.",
        "It is dropped; white space is kept.",
        f"printf '\\xef\\xbb\\xbf 42\\r\\n' >{ANSWER_FILE}",
        answer_is(" 42\r\n"),
        reads_answer=True,
    ),
    Case(
        "IO-22",
        "A process rewrites the answer file while it is read.",
        "One consistent version, read when nothing runs any more.",
        f"(setsid sh -c 'while :; do echo 1 >{WORKING_DIR}/a; mv {WORKING_DIR}/a {ANSWER_FILE}; "
        f"echo 2 >{WORKING_DIR}/b; mv {WORKING_DIR}/b {ANSWER_FILE}; done' >/dev/null 2>&1 &) ; "
        f"until [ -e {ANSWER_FILE} ]; do sleep .02; done; cat {ANSWER_FILE}",
        all_of(answer_is("1\n", "2\n")),
        reads_answer=True,
    ),
    Case(
        "IO-22b",
        "A process exchanges the answer file for a link while it is read.",
        "Regular or refused; never what the link points to.",
        # The link stands nearly all of the time, so that a reader who follows links is caught, and is there
        # before the command ends, however slowly the loop starts.
        f'(setsid python3 -c \'import os,time\nwhile True:\n    open("{WORKING_DIR}/a","w").write("1\\n")\n'
        f'    os.replace("{WORKING_DIR}/a","{ANSWER_FILE}")\n    os.symlink("/etc/passwd","{WORKING_DIR}/l")\n'
        f'    os.replace("{WORKING_DIR}/l","{ANSWER_FILE}")\n    time.sleep(.05)\' >/dev/null 2>&1 &) ; '
        f"until [ -L {ANSWER_FILE} ]; do sleep .02; done; echo end",
        lambda seen: (
            ""
            if seen.answer is not None and seen.answer.text in ("", "1\n")
            else f"answer {str(seen.answer)[:200]}"
        ),
        reads_answer=True,
    ),
    Case(
        "SCO-09",
        "A command leaves modules and scores where a scorer might find them.",
        "The answer is what the answer file says; nothing else is looked at, nothing is imported.",
        "for f in sitecustomize.py usercustomize.py math_verify.py sympy.py conftest.py torch.py; do "
        f"printf 'import os;os.system(\"touch /tmp/PWNED\")\\n' >{WORKING_DIR}/$f; done; "
        f"mkdir -p /logs/verifier {WORKING_DIR}/.git/hooks 2>/dev/null; "
        f"echo 1.0 | tee {WORKING_DIR}/reward.txt {WORKING_DIR}/score.json >/dev/null; echo 0 >{ANSWER_FILE}; "
        f"ls {WORKING_DIR}",
        answer_is("0\n"),
        reads_answer=True,
    ),
)
