"""The verifier that a reasoning-gym data set brings along.

The entry (question, answer, metadata) travels in the task's metadata, so scoring needs neither the
data set's configuration nor its seed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from sandbox_rl.rewards.base import BadGold
from sandbox_rl.rewards.gym_verifiers import VERIFIERS
from sandbox_rl.rewards.text import unbox
from sandbox_rl.types import Task

FULL = 0.999
"""What a verifier must give for a right answer. Below it they pay for format, or for text that merely
contains the answer (length ratio), which rewards hedging."""

MAX_CHARS = 4096

_AUDITED = """
ab acre advanced_geometry aiw arc_1d arc_agi base_conversion basic_arithmetic bf binary_alternation
bitwise_arithmetic boxnet caesar_cipher calendar_arithmetic chain_sum circuit_logic codeio
color_cube_rotation count_bits count_primes course_schedule cryptarithm decimal_arithmetic decimal_chain_sum
dice emoji_mystery family_relationships figlet_font fraction_simplification futoshiki game_of_life gcd
graph_color group_anagrams gsm_symbolic isomorphic_strings jugs kakurasu knight_swap knights_knaves
largest_island lcm leg_counting letter_counting letter_jumble list_functions mahjong_puzzle
manipulate_matrix maze mini_sudoku modulo_grid needle_haystack number_filtering number_format
number_sequence number_sorting palindrome_generation palindrome_partitioning path_star polynomial_equations
pool_matrix power_function prime_factorization products propositional_logic quantum_lock ransom_note rearc
rectangle_count rotate_matrix rotten_oranges rubiks_cube rush_hour self_reference sentence_reordering
shortest_path simple_equations simple_geometry sokoban spell_backward string_manipulation string_splitting
string_synthesis sudoku survo syllogism time_intervals tower_of_hanoi tsumego word_ladder
word_sequence_reversal word_sorting zebra_puzzles
"""
AUDITED = frozenset(_AUDITED.split())
"""Data sets whose own verifier neither evaluates the answer nor hands it to what does (`tests/security`
looks at each of the installed version). Others are refused, unless `gym_verifiers` has one."""


def prepare(name: str) -> None:
    """Load a data set's verifier, which can take a fifth of a second (word lists)."""
    with contextlib.suppress(Exception):  # said when an answer is scored
        _verifier(name)


def check_gold(task: Task) -> None:
    """Raise `BadGold` unless the entry is there, its data set is known, and its own answer scores."""
    name, entry = _entry(task)
    verify = _verifier(name)
    try:
        verify(str(entry["answer"]), dict(entry))
    except Exception as error:
        raise BadGold(f"the verifier of {name!r} raises on its own answer: {error!r}") from error


def score(answer: str, task: Task) -> float:
    """1.0 if the data set's verifier gives full marks, else 0.0.

    With `metadata["partial"]` true the verifier's own value, cut to [0, 1], instead.
    """
    name, entry = _entry(task)
    answer = unbox(answer)
    if answer == entry["answer"]:
        return 1.0
    if len(answer) > MAX_CHARS:
        return 0.0
    try:
        value = float(_verifier(name)(answer, dict(entry)))
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        if name in VERIFIERS:
            return 0.0  # how our own say that it is no answer of theirs
        raise error
    if task.metadata.get("partial"):
        return min(max(value, 0.0), 1.0)
    return float(value >= FULL)


def _entry(task: Task) -> tuple[str, Mapping[str, Any]]:
    name, entry = task.metadata.get("dataset"), task.metadata.get("entry")
    if not isinstance(name, str) or not isinstance(entry, Mapping):
        raise BadGold("metadata must hold 'dataset' (its name) and 'entry' (question, answer, metadata)")
    if not isinstance(entry.get("answer"), str) or not isinstance(entry.get("metadata"), Mapping):
        raise BadGold(f"the entry of {name!r} lacks its 'answer' or 'metadata'")
    return name, entry


@lru_cache(maxsize=128)
def _verifier(name: str) -> Callable[[str, dict[str, Any]], float]:
    if name in VERIFIERS:
        return VERIFIERS[name]
    # Importing all generators takes a second: only the worker that needs one pays for it.
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name in DATASETS and name not in AUDITED:
        raise BadGold(
            f"the verifier of {name!r} has not been looked at for evaluating answers; "
            "use another data set or a scorer of your own"
        )

    try:
        verifier: Callable[[str, dict[str, Any]], float] = reasoning_gym.get_score_answer_fn(name)
    except ValueError as error:
        raise BadGold(f"reasoning-gym has no data set {name!r}") from error
    return verifier
