"""What a signal asks for, and which episodes it ends; whole runs are in tests/faults/test_signals.py."""

from __future__ import annotations

import os
import signal

import pytest

from sandbox_rl.errors import StopAsked
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.stopping import Asked, Presses


async def one() -> int:
    return 1


def test_an_interrupt_ends_evaluations_and_lets_the_episodes_of_a_step_end():
    with LoopThread() as loop:
        assert loop.run_episodes(one()) == 1
        loop.give_up(False)
        with pytest.raises(StopAsked):
            loop.run_episodes(one())
        assert loop.run_episodes(one(), of_step=True) == 1
        loop.give_up(True)
        with pytest.raises(StopAsked):
            loop.run_episodes(one(), of_step=True)


@pytest.mark.parametrize(
    ("hurried", "numbers", "asked"),
    [
        (False, [signal.SIGINT], Asked.STEP),
        (False, [signal.SIGINT, signal.SIGINT], Asked.STEP),  # of one press, handed on by a wrapper
        (False, [signal.SIGTERM, signal.SIGTERM], Asked.UPDATE),
        (False, [signal.SIGINT, signal.SIGTERM], Asked.UPDATE),
        (True, [signal.SIGINT], Asked.UPDATE),
        (False, [signal.SIGCHLD], Asked.NOTHING),
        (False, [], Asked.NOTHING),
    ],
)
def test_what_signals_that_come_together_ask_for(hurried, numbers, asked):
    presses = Presses(hurried=hurried)
    if numbers:
        os.write(presses.writer, bytes(numbers))
    assert presses.read(0.01) is asked
    presses.close()


def test_a_loop_that_was_not_entered_is_not_waited_for():
    loop = LoopThread()
    with pytest.raises(RuntimeError, match="enter the LoopThread"):
        loop.run(one())
    with loop:
        assert loop.run(one()) == 1
