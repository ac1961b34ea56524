"""Before the first episode: a scorer that cannot work is refused, and so is a reward that can be bought."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from sandbox_rl.errors import ConfigError
from sandbox_rl.rewards.trial import PROBED, SourceSample, try_rewards
from sandbox_rl.tasks.config import DataSettings
from sandbox_rl.tasks.load import load_tasks
from sandbox_rl.types import Task
from tests.unit.rewards import bad_scorers
from tests.unit.rewards.conftest import scoring_pool

OWN = "tests.unit.rewards.bad_scorers"
NAMES = tuple(name for name, value in vars(bad_scorers).items() if getattr(value, "__module__", "") == OWN)
Try = Callable[..., tuple[str, ...]]


@pytest.fixture(scope="module")
def tried() -> Iterator[Try]:
    """Tries a source on a pool that runs for all tests."""
    with asyncio.Runner() as runner:
        pool = scoring_pool(
            timeout_s=0.5, expected=("exact", "math", "reasoning_gym", *(f"{OWN}:{name}" for name in NAMES))
        )
        runner.run(pool.__aenter__())

        def now(tasks: Sequence[Task], **said: bool) -> tuple[str, ...]:
            return runner.run(try_rewards(pool, [SourceSample("sums", tasks, **said)]))

        try:
            yield now
        finally:
            runner.run(pool.__aexit__(None, None, None))


def sums(scorer: str, count: int = 16) -> list[Task]:
    golds = [str(100 + 37 * n) for n in range(count)]
    name = f"{OWN}:{scorer}" if scorer in NAMES else scorer
    return [
        Task(f"t{n}", f"What is {gold}0 divided by ten?", gold, scorer=name) for n, gold in enumerate(golds)
    ]


@pytest.mark.parametrize("scorer", ["exact", "math", "f1", "numeric", "good", "reading"])
@pytest.mark.parametrize("count", [1, 3, 16])
def test_honest_scorers_pass(scorer: str, count: int, tried: Try) -> None:
    assert tried(sums(scorer, count)) == ()


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        ("raises", "no such column"),
        ("raises_on_wrong", "the wrong answer 'an answer'"),
        ("raises_on_empty", "no text"),
        ("none", "returned None"),
        ("nan", "returned nan"),
        ("seven", "returned 7.0"),
        ("negative", "returned -1.0"),
        ("other_arguments", "takes 1 positional argument"),
        ("hangs", "within 0.5 s"),
        ("never_pays", "the gold answer of task 't0' earns 0 "),
        ("pays_most", "the gold answer of task 't0' earns 0.7 "),
        ("lengths", "gold_is_answer"),
    ],
)
def test_a_scorer_that_cannot_work_is_refused_in_one_line(scorer: str, said: str, tried: Try) -> None:
    with pytest.raises(ConfigError) as error:
        tried(sums(scorer))
    message = str(error.value)
    assert all(part in message for part in (said, "source sums", f"{OWN}:{scorer}"))
    assert "\n" not in message


def test_a_gold_text_that_is_no_answer_need_not_earn_1(tried: Try) -> None:
    assert tried(sums("lengths"), gold_is_answer=False) == ()


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        ("pays_anything", "an empty answer earns 1.00"),
        ("pays_any_text", "the constant '0' earns 1.00"),
        ("pays_most_of_the_time", "expected at most 0.00"),
        ("pays_the_question", "the question itself earns 1.00"),
        ("pays_any_gold", "another task's gold answer earns"),
        ("pays_lists", "all options joined earns"),
        ("pays_half", "earns 0.50"),
    ],
)
def test_a_reward_that_can_be_bought_is_refused(scorer: str, said: str, tried: Try) -> None:
    with pytest.raises(ConfigError) as error:
        tried(sums(scorer))
    message = str(error.value)
    assert all(part in message for part in (said, "source sums", "accept_degenerate"))
    assert "\n" not in message
    (warning,) = tried(sums(scorer), accept_degenerate=True)
    assert said in warning
    assert warning.endswith("accepted")


def test_a_few_tasks_are_enough_to_see_that_anything_is_rewarded(tried: Try) -> None:
    with pytest.raises(ConfigError):
        tried(sums("pays_any_text", 1))


def test_two_golds_are_chance_and_not_bought(tried: Try) -> None:
    coin = [Task(f"t{n}", "Heads?", ("yes", "no")[n % 2], scorer="exact") for n in range(PROBED)]
    assert tried(coin) == ()


def test_golds_that_are_all_alike_are_reported(tried: Try) -> None:
    (warning,) = tried([Task(f"t{n}", "?", "yes", scorer="exact") for n in range(8)])
    assert "all 8 gold answers looked at are 'yes'" in warning


def gym(dataset: str, scorer: str = "reasoning_gym") -> list[Task]:
    source = {"type": "reasoning_gym", "dataset": dataset, "size": PROBED, "scorer": scorer}
    settings = DataSettings.model_validate({"sources": [source], "held_out": 0})
    return list(load_tasks(settings, split="train", base_dir=Path()))


BOUGHT = ["complex_arithmetic", "game_of_life_halting", "coin_flip"]


@pytest.mark.parametrize("dataset", [*BOUGHT, "chain_sum", "products", "needle_haystack", "syllogism"])
def test_the_verifiers_that_recipes_use_cannot_be_bought(dataset: str, tried: Try) -> None:
    assert tried(gym(dataset)) == ()


@pytest.mark.parametrize("dataset", ["game_of_life_halting", "coin_flip"])
def test_the_original_verifiers_are_found_out(dataset: str, tried: Try) -> None:
    with pytest.raises(ConfigError, match="accept_degenerate"):
        tried(gym(dataset, f"{OWN}:original_verifier"))


def test_a_dead_judge_is_refused_unless_a_rule_stands_in() -> None:
    from sandbox_rl.errors import SetupError
    from sandbox_rl.rewards.config import JudgeSettings

    async def trial(fallback: str | None) -> tuple[str, ...]:
        settings = JudgeSettings(base_url="http://127.0.0.1:9/v1", model="m", retries=0, fallback=fallback)
        async with scoring_pool(workers=1, judge=settings) as pool:
            return await try_rewards(pool, [SourceSample("essays", [Task("t", "?", "42", scorer="judge")])])

    with pytest.raises(SetupError, match="endpoint gives no verdict") as error:
        asyncio.run(trial(None))
    assert "http://127.0.0.1:9/v1" in str(error.value)
    assert "\n" not in str(error.value)
    (warning,) = asyncio.run(trial("exact"))
    assert "exact scores in its place" in warning
