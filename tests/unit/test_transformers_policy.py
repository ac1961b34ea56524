"""The in-process policy: exact log-probs, seeds that decide, batches that wait for nobody dead."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

from sandbox_rl.errors import EngineFault
from sandbox_rl.policies.base import TurnSampling
from sandbox_rl.policies.lease import ModelLease
from sandbox_rl.policies.transformers import TransformersPolicy
from sandbox_rl.policies.transformers_sampling import sample_batch
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer
from tests import prepared

TOKENIZER = tiny_tokenizer()
MODEL = tiny_model(TOKENIZER, seed=0)
END = frozenset([TOKENIZER.eos_token_id])
PROMPTS = [list(range(10, 10 + n)) for n in (5, 9, 40, 1)]


def policy(**options) -> TransformersPolicy:
    return TransformersPolicy(MODEL, end_ids=END, pad_id=TOKENIZER.pad_token_id, max_context=1024, **options)


def reference_logprobs(prompt, action, temperature=1.0):
    logits = MODEL(torch.tensor([[*prompt, *action.token_ids]])).logits[0].float() / temperature
    logps = logits.log_softmax(-1)
    return [logps[len(prompt) + i - 1, token].item() for i, token in enumerate(action.token_ids)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_a_full_forward_pass(temperature):
    samplings = [TurnSampling(max_tokens=30, temperature=temperature, seed=i) for i in range(4)]
    actions = sample_batch(MODEL, PROMPTS, samplings, end_ids=END, pad_id=0)
    for prompt, action in zip(PROMPTS, actions, strict=True):
        assert action.logprobs == pytest.approx(reference_logprobs(prompt, action, temperature), abs=1e-4)


def test_a_turn_depends_on_its_seed_and_not_on_its_company():
    samplings = [TurnSampling(max_tokens=20 + i, seed=i) for i in range(4)]
    together = sample_batch(MODEL, PROMPTS, samplings, end_ids=END, pad_id=0)
    for prompt, sampling, action in zip(PROMPTS, samplings, together, strict=True):
        (alone,) = sample_batch(MODEL, [prompt], [sampling], end_ids=END, pad_id=0)
        assert alone.token_ids == action.token_ids
    (other,) = sample_batch(MODEL, PROMPTS[:1], [TurnSampling(max_tokens=20, seed=99)], end_ids=END, pad_id=0)
    assert other.token_ids != together[0].token_ids


def test_caps_and_ends():
    """A turn ends with the first end id, which it contains, or at its own cap."""
    everything = frozenset(range(len(TOKENIZER)))
    actions = sample_batch(MODEL, PROMPTS, [TurnSampling(max_tokens=5)] * 4, end_ids=everything, pad_id=0)
    assert {(len(a.token_ids), a.finish_reason) for a in actions} == {(1, "stop")}
    caps = [1, 7, 3, 12]
    actions = sample_batch(
        MODEL, PROMPTS, [TurnSampling(max_tokens=cap) for cap in caps], end_ids=frozenset([10**6]), pad_id=0
    )
    assert [len(a.token_ids) for a in actions] == caps
    assert {a.finish_reason for a in actions} == {"length"}


def test_samples_follow_the_distribution():
    """4,000 single tokens against the model's probabilities: a chi-square far from its tail."""
    count = 4_000
    logits = MODEL(torch.tensor([PROMPTS[0]])).logits[0, -1].detach().float()
    expected = logits.softmax(-1) * count
    actions = sample_batch(
        MODEL,
        [PROMPTS[0]] * count,
        [TurnSampling(max_tokens=1, seed=i) for i in range(count)],
        end_ids=END,
        pad_id=0,
    )
    seen = torch.bincount(torch.tensor([a.token_ids[0] for a in actions]), minlength=len(expected))
    chi_square = float(((seen - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_greedy_and_truncated_sampling():
    (greedy,) = sample_batch(
        MODEL, PROMPTS[:1], [TurnSampling(max_tokens=1, temperature=0)], end_ids=END, pad_id=0
    )
    logits = MODEL(torch.tensor([PROMPTS[0]])).logits[0, -1]
    best = set(logits.topk(3).indices.tolist())
    assert greedy.token_ids == (int(logits.argmax()),)
    for truncation in ({"top_k": 3}, {"top_p": 1e-6}):
        tokens = {
            sample_batch(
                MODEL, PROMPTS[:1], [TurnSampling(max_tokens=1, seed=i, **truncation)], end_ids=END, pad_id=0
            )[0].token_ids[0]
            for i in range(20)
        }
        assert tokens <= best


def test_sampling_leaves_every_module_in_the_mode_that_it_was_in():
    MODEL.train()
    MODEL.model.norm.eval()  # as frozen parts are
    before = [module.training for module in MODEL.modules()]
    sample_batch(MODEL, PROMPTS, [TurnSampling(max_tokens=2)] * 4, end_ids=END, pad_id=0)
    assert [module.training for module in MODEL.modules()] == before
    assert {True, False} == set(before)
    MODEL.eval()


def test_a_row_that_nobody_wants_any_more_ends_between_two_tokens():
    samplings = [TurnSampling(max_tokens=20, seed=i) for i in range(4)]
    endless = frozenset([10**6])
    asked = []
    cut = sample_batch(
        MODEL,
        PROMPTS,
        samplings,
        end_ids=endless,
        pad_id=0,
        wanted=lambda row: asked.append(row) or row != 1 or asked.count(1) < 3,
    )
    whole = sample_batch(MODEL, PROMPTS, samplings, end_ids=endless, pad_id=0)
    assert [len(action.token_ids) for action in cut] == [20, 3, 20, 20]
    for short, long in zip(cut, whole, strict=True):
        assert short.token_ids == long.token_ids[: len(short.token_ids)]


@contextmanager
def slow_tokens(seconds):
    """Each forward pass of a sampler takes so long; gives the modes that these saw at their end."""
    seen = []

    def wait(module, args, kwargs, output):
        if threading.current_thread() is not threading.main_thread():
            time.sleep(seconds)
            seen.append(module.training)

    handle = MODEL.register_forward_hook(wait, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


async def act_briefly(subject, timeout, seen=()):
    """Returns how many passes had ended with the turn."""
    async with subject.session("a") as a:
        with pytest.raises(TimeoutError):
            await a.act(PROMPTS[0], TurnSampling(max_tokens=1000), timeout=timeout)
        return len(seen)


def ends_nowhere(lease, **options):
    return TransformersPolicy(
        MODEL, end_ids=frozenset([10**6]), pad_id=0, max_context=1024, lease=lease, **options
    )


def test_whoever_trains_gets_the_model_back_when_its_episodes_have_ended():
    """The turn's time is over in the middle of a token; what was sampled afterwards is at most that token."""
    lease = ModelLease()
    MODEL.train()
    with slow_tokens(0.3) as seen, LoopThread(lease) as loop, loop.entered(ends_nowhere(lease)) as subject:
        at_its_end = loop.run(act_briefly(subject, timeout=0.4, seen=seen))
        tokens = len(seen)
        assert MODEL.training
        time.sleep(0.7)
        assert len(seen) == tokens <= at_its_end + 1
        assert MODEL.training
    MODEL.eval()


def the_model_comes_back_after(end):
    lease = ModelLease()
    tasks = []

    async def broken(subject, seen):
        async def abandoned():
            async with subject.session("a") as a:
                await a.act(PROMPTS[0], TurnSampling(max_tokens=1000), timeout=60)

        tasks.append(asyncio.create_task(abandoned()))
        while not seen:  # noqa: ASYNC110 (a list to look at, not a task)
            await asyncio.sleep(0.01)
        if end is ValueError:
            raise ValueError
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # it waits for these rollouts
        await asyncio.sleep(60)

    MODEL.train()
    with slow_tokens(0.1) as seen, LoopThread(lease) as loop, loop.entered(ends_nowhere(lease)) as subject:
        with pytest.raises(end):
            loop.run(broken(subject, seen))
        tokens = len(seen)
        assert MODEL.training
        time.sleep(0.3)
        assert len(seen) == tokens > 0
    MODEL.eval()


def test_the_model_comes_back_when_rollouts_end_with_an_exception():
    the_model_comes_back_after(ValueError)


def test_the_model_comes_back_when_rollouts_are_interrupted():
    """In a process of its own: a real SIGINT is no guest in that of the tests."""
    program = (
        f"from {__name__} import the_model_comes_back_after as act\nact(KeyboardInterrupt)\nprint('done')"
    )
    done = prepared.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    assert done.stdout.endswith("done\n"), done.stderr


def test_nothing_is_sampled_between_the_windows():
    """A leftover of earlier rollouts asks while the model is trained: it is refused, never served."""
    lease = ModelLease()
    left, trains = [], threading.Event()

    async def leave_one(subject):
        async def late():
            await asyncio.to_thread(trains.wait)
            async with subject.session("a") as a:
                await a.act(PROMPTS[0], TurnSampling(max_tokens=3), timeout=5)

        left.append(asyncio.create_task(late()))

    with slow_tokens(0.0) as seen, LoopThread(lease) as loop, loop.entered(policy(lease=lease)) as subject:
        loop.run(leave_one(subject))
        trains.set()
        deadline = time.monotonic() + 60
        while not left[0].done():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(EngineFault, match="being trained"):
            left[0].result()
    assert seen == []


def test_a_sampler_that_keeps_the_model_ends_the_run():
    lease = ModelLease(timeout_s=0.2)
    with slow_tokens(4.0), LoopThread(lease) as loop:
        subject = loop.run(ends_nowhere(lease, max_delay_s=0.0).__aenter__())
        with pytest.raises(EngineFault, match=r"did not end within 0\.2 s"):
            loop.run(act_briefly(subject, timeout=2.0))
        time.sleep(4.0)


async def test_a_batch_starts_when_all_living_episodes_wait():
    batches = []

    def counted():
        batches.append(len(batches))
        return nullcontext()

    async with policy(max_delay_s=30.0, compute=counted) as subject:
        async with subject.session("a") as a, subject.session("b") as b:
            first = asyncio.create_task(a.act(PROMPTS[0], TurnSampling(max_tokens=3), timeout=60))
            await asyncio.sleep(0.1)
            assert not first.done(), "one of two living episodes waits: the batch must not start yet"
            second = asyncio.create_task(b.act(PROMPTS[1], TurnSampling(max_tokens=3), timeout=60))
            await asyncio.gather(first, second)
    assert len(batches) == 1


async def test_an_episode_that_ends_lets_the_others_go_on():
    async with policy(max_delay_s=30.0) as subject:
        async with subject.session("a") as a:
            async with subject.session("b"):
                waiting = asyncio.create_task(a.act(PROMPTS[0], TurnSampling(max_tokens=3), timeout=60))
                await asyncio.sleep(0.05)
                assert not waiting.done()
            await asyncio.wait_for(waiting, 60)


async def test_a_batch_starts_although_its_only_episode_has_just_given_up():
    """It gives up between the decision to start and the start: nothing is sampled, and nothing fails."""
    failed = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed.append(context))
    async with policy(max_delay_s=30.0) as subject, subject.session("a") as a:
        async with subject.session("b"):
            waiting = asyncio.create_task(a.act(PROMPTS[0], TurnSampling(max_tokens=3), timeout=60))
            await asyncio.sleep(0.05)
            waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await a.act(PROMPTS[0], TurnSampling(max_tokens=3), timeout=60)
    gc.collect()
    assert failed == []


async def test_no_turn_waits_longer_than_the_maximum_delay():
    async with policy(max_delay_s=0.05) as subject:
        async with subject.session("a") as a, subject.session("b"):
            started = time.monotonic()
            await a.act(PROMPTS[0], TurnSampling(max_tokens=1), timeout=60)
            assert time.monotonic() - started >= 0.05


async def test_a_late_turn_is_a_timeout_and_leaves_nothing_behind():
    async with policy(max_delay_s=30.0) as subject:
        async with subject.session("a") as a, subject.session("b"):
            with pytest.raises(TimeoutError):
                await a.act(PROMPTS[0], TurnSampling(max_tokens=1), timeout=0.05)
            waiting = asyncio.create_task(a.act(PROMPTS[0], TurnSampling(max_tokens=1), timeout=60))
            await asyncio.sleep(0.05)
            assert not waiting.done(), "two episodes are alive, and one turn waits for the other's"
            waiting.cancel()


async def test_a_failing_model_is_our_fault():
    def broken(*_):
        raise RuntimeError("out of memory")

    async with policy(max_delay_s=0.0) as subject, subject.session("a") as a:
        hook = MODEL.register_forward_pre_hook(broken)
        try:
            with pytest.raises(EngineFault, match="out of memory"):
                await a.act(PROMPTS[0], TurnSampling(max_tokens=1), timeout=60)
        finally:
            hook.remove()
