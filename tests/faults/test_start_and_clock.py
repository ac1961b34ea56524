"""FI-20, FI-21, FI-23: another tokenizer, trackers and readers that go away, clocks that jump."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from transformers import TrainerCallback

from sandbox_rl.errors import ModelError
from sandbox_rl.http_client import Address
from sandbox_rl.policies.vllm.api import VLLMServer
from sandbox_rl.policies.vllm.check import check_tokenizer
from sandbox_rl.policies.vllm.fake import FakeVLLM
from sandbox_rl.training.callbacks import keep_going
from sandbox_rl.training.tiny import tiny_tokenizer
from sandbox_rl.types import StopReason
from tests.unit.rig import SUBMIT, bash, make_engine, request, say, write

OURS = tiny_tokenizer()


async def checked(theirs, tmp_path_factory) -> None:
    socket = tmp_path_factory.mktemp("s") / "s"
    async with FakeVLLM(tokenizer=theirs).serving(socket):
        async with VLLMServer(Address("http://localhost", str(socket))) as server:
            await check_tokenizer(server, "policy", OURS)


async def test_the_same_tokenizer_passes(tmp_path_factory):
    await checked(tiny_tokenizer(), tmp_path_factory)


async def test_another_vocabulary_is_refused_with_the_first_id_that_differs(tmp_path_factory):
    other = tiny_tokenizer(["the quick brown fox"] * 9)
    first = next(n for n in range(len(OURS)) if other.decode([n]) != OURS.decode([n]))
    with pytest.raises(ModelError, match=f"another tokenizer: id {first} "):
        await checked(other, tmp_path_factory)


@pytest.mark.parametrize(
    "change",
    [("<|im_start|>", "<|im_start|> "), ("<|im_end|>", ""), ("message.content", "message.content | trim")],
)
async def test_another_template_is_refused_with_the_first_token_that_differs(change, tmp_path_factory):
    other = tiny_tokenizer()
    assert change[0] in other.chat_template
    other.chat_template = other.chat_template.replace(*change)
    with pytest.raises(ModelError, match=r"another chat template: token \d+ of a conversation is "):
        await checked(other, tmp_path_factory)


class Dying(TrainerCallback):
    """A tracker whose service is down from the first log on."""

    __module__ = "transformers.integrations.integration_utils"

    def __init__(self) -> None:
        self.asked = 0

    def on_train_begin(self, args, state, control, **kwargs):
        raise ConnectionError("no such project")

    def on_log(self, args, state, control, **kwargs):
        self.asked += 1
        raise ConnectionError("500 Server Error")


class Ours(TrainerCallback):
    def on_log(self, args, state, control, **kwargs):
        raise RuntimeError("a check of ours")


def test_a_tracker_that_dies_is_reported_once_and_ends_nothing(caplog):
    dying, ours = Dying(), Ours()
    keep_going([dying, ours])
    for _ in range(3):
        assert dying.on_log(None, None, "control", logs={}) is None
    assert dying.asked == 3
    assert len(caplog.records) == 1
    assert "500 Server Error" in caplog.text
    with pytest.raises(ConnectionError):  # what is wrong at the start is the person's to fix
        dying.on_train_begin(None, None, "control")
    with pytest.raises(RuntimeError):
        ours.on_log(None, None, "control")


def test_who_reads_the_output_may_go_away():
    code = (
        "import sys\n"
        "from sandbox_rl.terminal import Terminal\n"
        "terminal = Terminal()\n"
        "for n in range(3000): terminal.say('x' * 100)\n"
        "with terminal.progress('t', 3) as bar: bar.advance(1.0)\n"
        "print('went on', file=sys.stderr)\n"
    )
    read, write_end = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    os.read(read, 10)
    os.close(read)
    _, said = process.communicate(timeout=200)
    assert (process.returncode, said.decode().strip()) == (0, "went on")


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_clock_that_jumps_ends_no_episode_and_spares_none(hours, monkeypatch):
    """The time of day moves by an hour with every look at it."""
    real, looks = time.time, iter(range(1, 1_000_000))
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * hours * next(looks))

    def script(episode_id, turn, ids):
        if episode_id == "endless":
            return say(bash("true"))
        return say(*[(bash("ls"),), (write("42"),), (SUBMIT,)][turn])

    engine = make_engine(script, episode={"timeout_s": 4.0, "max_turns": 10**9, "max_tokens": 10**9})
    engine.agent.inner.max_context = 10**12
    async with engine:
        ended, endless = await engine.run([request("e"), request("endless")])
    assert (ended.trajectory.stop, ended.reward.value) == (StopReason.SUBMITTED, 1.0)
    assert endless.trajectory.stop is StopReason.TIMEOUT
    assert 4.0 <= endless.trajectory.seconds < 3600, "by a clock that does not jump"
