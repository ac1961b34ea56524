"""The order of the data, as a function of a group's number alone: nothing to skip, restore or agree on."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import TypeVar

from sandbox_rl.seeds import derive_seed

T = TypeVar("T")


def of_group(tasks: Sequence[T], group: int, *, seed: int, shuffle: bool = True) -> T:
    """The task of a group's number: tasks in passes, each pass in an order of its own.

    Args:
        shuffle: False: each pass in the order of `tasks`.
    """
    number, place = divmod(group, len(tasks))
    return tasks[_order(len(tasks), number, seed)[place] if shuffle else place]


@functools.lru_cache(maxsize=2)
def _order(count: int, number: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(derive_seed(seed, "pass", number)).shuffle(order)
    return order
