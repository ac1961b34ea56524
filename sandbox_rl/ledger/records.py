"""What the ledger says about an update: its groups, and of each sample how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError


class SampleEnd(StrEnum):
    """How a sample ended; `why` is a sentence for a person: why this was not trained, or that it was."""

    why: str

    USED = "used", "It was trained: its tokens were in the loss of this update with its advantage."
    NOT_JUDGED = (
        "not_judged",
        "It has no reward because something on our side failed, so it counts for nothing, also not in its "
        "group's mean.",
    )
    EQUAL_REWARDS = (
        "equal_rewards",
        "All judged samples of its group have the same reward, so its advantage is 0 and the reward gives no "
        "gradient.",
    )
    STALE = (
        "stale",
        "The weights that sampled it were older than grpo.max_staleness allows when its update began.",
    )
    REFILLED = (
        "refilled",
        "Its group taught nothing, or no more than another one, and a group of another task took its place.",
    )
    CUT = (
        "cut",
        "Its group was among the slowest of an over-sampled step and was cancelled; it is sampled again "
        "later with the same task and seeds.",
    )
    OVERLONG = "overlong", "A budget ended the episode, and the recipe leaves such samples out of the loss."
    NOT_FINITE = (
        "not_finite",
        "The gradient of its update was NaN or infinite, so the update was left out and changed no weight.",
    )
    NO_TOKENS = "no_tokens", "The policy sampled no token in it, so there is nothing to take a gradient of."

    def __new__(cls, value: str, why: str) -> SampleEnd:
        """A member that knows why."""
        member = str.__new__(cls, value)
        member._value_, member.why = value, why
        return member


@dataclass(frozen=True, slots=True)
class Sample:
    """One episode of a group, in the order of the group's samples.

    Args:
        episode: id in the journal.
        advantage: that it has in its group; None where it has no reward, or its group never ended.
    """

    episode: str
    end: SampleEnd
    advantage: float | None


@dataclass(frozen=True, slots=True)
class Group:
    """The samples of one group's number, or of a round that took the place of the group of that number.

    Args:
        number: in the whole run, all processes together, from 0.
        task: id.
        refill: number of the round, from 0; None for the group as it was drawn.
    """

    number: int
    task: str
    refill: int | None
    samples: tuple[Sample, ...]

    def not_finite(self) -> Group:
        """The same where the update that it is in was left out: what would have been used was not."""
        samples = [
            replace(sample, end=SampleEnd.NOT_FINITE) if sample.end in _IN_THE_LOSS else sample
            for sample in self.samples
        ]
        return replace(self, samples=tuple(samples))


@dataclass(frozen=True, slots=True)
class Update:
    """One finished optimizer step, and everything that was decided since the one before.

    Args:
        number: of the update, counted from 1.
        time: when it had finished, in Unix seconds.
    """

    number: int
    time: float
    groups: tuple[Group, ...]

    @property
    def left_out_in_part(self) -> bool:
        """Whether some of what is in the loss was left out and some was not, which cannot be."""
        ends = {sample.end for group in self.groups for sample in group.samples}
        return SampleEnd.NOT_FINITE in ends and not ends.isdisjoint(_IN_THE_LOSS)


_IN_THE_LOSS = (SampleEnd.USED, SampleEnd.EQUAL_REWARDS)


_GROUPS = TypeAdapter(tuple[Group, ...])


def as_line(update: Update) -> bytes:
    """As a line of JSON."""
    line = {"update": update.number, "time": update.time, "groups": update.groups}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def from_line(line: Mapping[str, Any]) -> Update:
    """Back from JSON values.

    Raises:
        ValueError, KeyError, TypeError: they are not those of an update.
    """
    try:
        return Update(int(line["update"]), float(line["time"]), _GROUPS.validate_python(line["groups"]))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, ('groups', *first['loc'])))}: {first['msg']}") from error
