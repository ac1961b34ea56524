"""ISO: what an answer reaches even if it gets a scorer to run it as code, and that none gets ours to."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from sandbox_rl.errors import SandboxFault, SetupError
from sandbox_rl.rewards.base import BUILT_IN
from sandbox_rl.rewards.config import RewardSettings
from sandbox_rl.rewards.gym import AUDITED
from sandbox_rl.rewards.gym_verifiers import VERIFIERS
from sandbox_rl.rewards.places import PROGRAM, PlainPlace
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.sandboxes.program import ProgramSandboxes
from sandbox_rl.types import Answer, AnswerStatus, Reward, Task

from .hostile_answers import MARK, hostile_answers

pytestmark = pytest.mark.asyncio(loop_scope="module")

HERE = "tests.security.evaluating_scorers"
RUNS, COMPARES, HONEST = (f"{HERE}:{name}" for name in ("runs_code", "compares_result", "honest"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[ScoringPool]:
    expected = (*BUILT_IN, RUNS, COMPARES, HONEST)
    place = ProgramSandboxes(PROGRAM, memory_mb=2048)
    async with ScoringPool(place, RewardSettings(timeout_s=1.0, memory_mb=512), expected=expected) as made:
        yield made


async def score(pool: ScoringPool, answer: str, scorer: str = RUNS, gold: str = "GOLD") -> Reward:
    task = Task(f"t-{gold}", "?", gold, scorer=scorer)
    return await pool.score(task, Answer(AnswerStatus.OK, answer))


def marked() -> bool:
    return os.path.lexists(MARK)


CLAIMS = {
    "a file of the host is read": "open({secret!r}).read(); verdict = 1",
    "the user's home is seen": "import os; verdict = bool(os.listdir('/root') or os.listdir('/home'))",
    "a file is written": "open('/tmp/x', 'w'); verdict = 1",
    "a directory is made": "import os; os.mkdir('/dev/shm/x'); verdict = 1",
    "memory outlives the process": "import os; os.memfd_create('x'); verdict = 1",
    "a process is started": "import os; os.fork() and os._exit(0); verdict = 1",
    "a program is run": "import os; os.execv('/usr/bin/true', ['true']); verdict = 1",
    "a socket is made": "import socket; socket.socket(); verdict = 1",
    "the trainer is reached": "import socket; socket.create_connection(('127.0.0.1', {port})); verdict = 1",
    "the parent is signalled": "import os; os.kill(1, 9); verdict = 1",
    "the parent's memory is opened": "open('/proc/1/mem', 'rb'); verdict = 1",
    "the parent's descriptors are seen": "import os; os.listdir('/proc/1/fd'); verdict = 1",
    "parent limits are changed": "import resource as r; r.prlimit(1, r.RLIMIT_NOFILE, (3, 3)); verdict = 1",
    "the parent is slowed": "import os; os.setpriority(0, 1, 19); verdict = 1",
    "another descriptor is open": (
        "import os\nfor n in range(4, 300):\n    try: os.fstat(n); verdict = 1\n    except OSError: pass\n"
    ),
    "a shown file is locked": (
        "import fcntl, os; fcntl.lockf(os.open(os.__file__, 0), fcntl.LOCK_SH); verdict = 1"
    ),
    "what the kernel counts for all is taken": (
        "import ctypes, os\n"
        "number = 206 if os.uname().machine == 'x86_64' else 0\n"
        "context = ctypes.c_ulong(0)\n"
        "verdict = ctypes.CDLL(None).syscall(number, 8, ctypes.byref(context)) == 0  # io_setup"
    ),
    "there is a user of power": "import os; verdict = os.getuid() == 0",
}


@pytest.mark.parametrize("claim", sorted(CLAIMS))
async def test_code_in_a_scoring_process_reaches_nothing(
    pool: ScoringPool, tmp_path: Path, claim: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("gold of another run")
    with socket.create_server(("127.0.0.1", 0)) as server:
        text = CLAIMS[claim]
        for name, value in (("{secret!r}", repr(str(secret))), ("{port}", str(server.getsockname()[1]))):
            text = text.replace(name, value)
        reward = await score(pool, text)
    assert reward.value == 0.0, claim


async def test_the_same_scorer_rewards_code_that_reaches_for_nothing(pool: ScoringPool) -> None:
    """The same scorer gives what the code says: the cases above fail only because nothing is in reach."""
    assert (await score(pool, "import math, os; verdict = 1.0")).value == 1.0


@pytest.mark.parametrize("fault", ["is missing", "cannot make a namespace"])
async def test_no_start_without_isolation(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is scored on the host instead; who writes `reward.isolation: none` is warned."""
    bwrap = tmp_path / "bwrap"
    if fault != "is missing":
        version = 'case "$*" in *--version*) echo "bubblewrap 0.9.0"; exit 0;; esac'
        bwrap.write_text(f"#!/bin/sh\n{version}\necho 'bwrap: No permissions' >&2\nexit 1\n")
        bwrap.chmod(0o755)
    closed = ScoringPool(ProgramSandboxes(PROGRAM, memory_mb=2048, bwrap=bwrap))
    with pytest.raises((SetupError, SandboxFault)) as error:
        async with closed:
            pass
    assert "\n" not in str(error.value)
    async with ScoringPool(PlainPlace(), RewardSettings(workers=1), expected=("exact",)):
        assert "reward.isolation is none" in caplog.text


async def test_without_isolation_the_claims_come_true(tmp_path: Path) -> None:
    """The weak place: what the sandbox stops is within reach."""
    secret = tmp_path / "secret"
    secret.write_text("s")
    async with ScoringPool(PlainPlace(), RewardSettings(workers=1), expected=(RUNS,)) as weak:
        for text in (
            f"open({str(secret)!r}).read(); verdict = 1",
            "import socket; socket.socket(); verdict = 1",
        ):
            assert (await score(weak, text)).value == 1.0


async def test_nothing_of_an_answer_reaches_the_next(pool: ScoringPool) -> None:
    await asyncio.gather(
        *(
            score(pool, text)
            for text in (
                "import builtins; builtins.float = lambda x: 1.0",
                f"import sys; sys.modules[{HERE!r}].honest = lambda a, t: 1.0",
                "import sandbox_rl.rewards.scoring as s; s.judge_item = lambda i: {'kind': 'value'}",
                "import json; json.dumps = lambda *a, **k: '{}'",
                "import os, time; [os.write(n, b'x' * 999) for n in range(3, 9)]",
            )
            for _ in range(4)
        )
    )
    for _ in range(8):
        assert (await score(pool, "no", HONEST)).value == 0.0
        assert (await score(pool, "GOLD", HONEST)).value == 1.0


async def test_forged_frames_speak_for_nobody_else_and_buy_no_fault(pool: ScoringPool) -> None:
    """A process can say what it likes of its own answer only, and never that we are to blame."""
    lines = [
        b'{"kind": "bad_gold", "detail": "it is your fault"}\n',
        b'{"kind": "down"}\n',
        b'{"kind": "value", "value": 7, "parts": {}}\n',
        b'{"kind": "value", "value": NaN, "parts": {}}\n',
        b"[" * 60_000 + b"\n",
        b'{"kind": "value", "value": 1' + b"0" * 60_000 + b', "parts": {}}\n',
        b"x" * 300_000,
        b"\n" * 1000,
        b"",
    ]
    forged = [f"import os; os.write(3, {line!r}); os._exit(0)" for line in lines]
    honest = [score(pool, text, HONEST) for text in ("GOLD", "no") for _ in range(20)]
    (*rewards,) = await asyncio.gather(*(score(pool, text) for text in forged), *honest)
    assert [reward.value for reward in rewards[: len(forged)]] == [0.0] * len(forged)
    assert [reward.value for reward in rewards[len(forged) :]] == [1.0] * 20 + [0.0] * 20


async def test_what_reads_an_answer_never_sees_the_gold(pool: ScoringPool) -> None:
    """The process that runs the text has no gold in any of its objects, nor in its memory."""
    hunt = (
        "import gc\n"
        "dicts = [o for o in gc.get_objects() if isinstance(o, dict)]\n"
        "found = [o for o in dicts if 'SECRETGOLD' + '77' in map(str, o.values())]\n"
        "result = 'SECRETGOLD' + '77' if found else 'nothing'\n"
    )
    assert (await score(pool, hunt, COMPARES, "SECRETGOLD77")).value == 0.0
    assert (await score(pool, "result = 6 * 7", COMPARES, "42")).value == 0.0  # a number is no text
    assert (await score(pool, "result = str(6 * 7)", COMPARES, "42")).value == 1.0


@pytest.mark.parametrize("scorer", ["math", "numeric", "choice", "exact", "f1", "rouge_l"])
async def test_a_thousand_hostile_answers_earn_nothing(pool: ScoringPool, scorer: str) -> None:
    gold = "B" if scorer == "choice" else "731"
    answers = list(hostile_answers(1000, gold))
    rewards = await asyncio.gather(*(score(pool, text, scorer, gold) for text in answers))
    unjudged = [a for a, r in zip(answers, rewards, strict=True) if r.value is None]
    paid = [
        (a, r.value) for a, r in zip(answers, rewards, strict=True) if r.value and r.value > 0.9
    ]  # words in common earn a part
    assert not unjudged
    assert not paid, paid[:5]
    assert not marked()


async def test_a_thousand_hostile_answers_to_expressions_earn_nothing(pool: ScoringPool) -> None:
    entries = {
        "countdown": ("1 + 2 * 3", {"numbers": [1, 2, 3], "target": 7}),
        "puzzle24": ("1 * 2 * 3 * 4", {"numbers": [1, 2, 3, 4]}),
        "simple_integration": ("x**2 + C", {"variable": "x", "integrand": "2*x"}),
        "polynomial_multiplication": ("x**2 + 2*x + 1", {}),
        "spiral_matrix": ("1 2 3", {}),
        "string_insertion": ("ABC", {}),
        "complex_arithmetic": ("1.0 + 2.0i", {"result": [1, 2]}),
    }
    answers = list(hostile_answers(1001, "7", seed=1))

    async def one(number: int, text: str) -> Reward:
        name = sorted(entries)[number % len(entries)]
        gold, metadata = entries[name]
        entry = {"question": "?", "answer": gold, "metadata": metadata}
        task = Task(name, "?", gold, scorer="reasoning_gym", metadata={"dataset": name, "entry": entry})
        return await pool.score(task, Answer(AnswerStatus.OK, text))

    rewards = await asyncio.gather(*(one(*pair) for pair in enumerate(answers)))
    assert {reward.value for reward in rewards} == {0.0}
    assert not marked()


EVALUATES = {
    "eval",
    "exec",
    "parse_expr",
    "sympify",
    "lambdify",
    "nsimplify",
    "S",
    "N",
    "__import__",
    "import_module",
}
OURS_TO_EVALUATE = {
    # (module, function): evaluates what the generator wrote, never the answer
    ("basic_arithmetic", "eval_floordiv"),
    ("bitwise_arithmetic", "generate_problem"),
    ("bitwise_arithmetic", "verify_solution"),
    ("codeio", "_generate_io_pair"),
    ("number_sorting", "score_answer"),
}


def evaluating_functions(module: str) -> set[str]:
    """Functions of a module that call what evaluates text, except a function of that name of its own."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    found = set()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Call):
                    name = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
                    if name in EVALUATES - own:
                        found.add(function.name)
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = {alias.name.split(".")[0] for alias in node.names}
                    if names & {"pickle", "marshal", "numexpr", "subprocess"}:
                        found.add(function.name)
    return found


async def test_every_verifier_of_the_installed_reasoning_gym_has_been_looked_at() -> None:
    """A version with a new data set, or with one that has begun to evaluate, fails here."""
    import reasoning_gym  # noqa: F401
    from reasoning_gym.factory import DATASETS

    assert set(DATASETS) == AUDITED | set(VERIFIERS) | {"composite"}
    evaluating = {
        (module.rpartition(".")[2], function)
        for name in AUDITED
        for module in [DATASETS[name][0].__module__]
        for function in evaluating_functions(module)
    }
    assert evaluating <= OURS_TO_EVALUATE, evaluating - OURS_TO_EVALUATE
    for name in VERIFIERS:
        assert name in DATASETS
    assert "sandbox_rl.rewards.gym" in sys.modules
