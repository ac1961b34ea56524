"""The tokens of an episode, with everything that training knows about each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sandbox_rl.errors import DataError
from sandbox_rl.journal.reader import lengths_of
from sandbox_rl.types import token_versions
from sandbox_rl.view.episode import event_pages, read_all
from sandbox_rl.view.opened import OpenRun
from sandbox_rl.view.trained import TrainedColumns, trained_columns

TOKENS = 20_000
"""Tokens that are sent at once."""
EVENTS = 200
"""Events that are read at once."""
PROMPT, SAMPLED, OBSERVED = 0, 1, 2


def tokens(run: OpenRun, query: Mapping[str, str]) -> dict[str, Any]:
    """Columns with one entry per token, from `offset` on; `words` gives the text of each id that occurs.

    Args:
        query: `id`, `offset`.

    Returns:
        `ids`; `origin` (0 prompt, 1 sampled, 2 observed); `turn` (-1: prompt); `logprob` of the sampler, None
        where nothing was sampled; `trainer`, its log-prob, and `share` of the step's gradient (see
        `training/trained_tokens.py`), None where they are not recorded; `version` of the weights; `control`
        ids; `advantage` of the episode, and its `weight`: the sum of its shares.

    Raises:
        DataError: as `episode`.
    """
    row, places = event_pages(run, query.get("id", ""))
    offset = max(0, int(query.get("offset", 0)))
    begin = _begin(run, row, places, offset)
    columns, whole = _columns(run, row, places, begin, offset - begin.tokens + TOKENS)
    trained = trained_columns(run, row)
    columns |= _of_trainer(columns["origin"], trained, begin.sampled)
    known = begin.tokens + len(columns["ids"])
    total = known if whole else row["prompt"] + row["sampled"] + row["observed"]
    start = offset - begin.tokens
    page = {name: column[start : start + TOKENS] for name, column in columns.items()}
    used = sorted(set(page["ids"]))
    return {
        **page,
        "total": total,
        "offset": offset,
        "words": dict(zip(map(str, used), run.vocabulary.words(used), strict=True)),
        "control": sorted(run.vocabulary.control_ids & set(used)),
        "end": row["end"],
        "advantage": row["advantage"],
        "recorded": trained is not None,
        "weight": None if trained is None else _number(float(np.nansum(trained.shares))),
    }


@dataclass(frozen=True, slots=True)
class _Begin:
    """An event of an episode, and how many tokens, and sampled ones, come before it."""

    event: int
    tokens: int
    sampled: int


def _begin(run: OpenRun, row: Mapping[str, Any], places: Sequence[int], offset: int) -> _Begin:
    """The event that holds the token at an offset, or the last one.

    Raises:
        DataError: the events are not what was written.
    """
    if not offset:
        return _Begin(0, 0, 0)
    if run.lengths is None or run.lengths[0] != row["id"] or len(run.lengths[1]) != len(places):
        try:
            lengths = lengths_of(run.index.directory, row["writer"], places)
        except (OSError, ValueError) as error:
            raise DataError(f"{run.path}: episode {row['id']!r} cannot be read: {error}") from error
        sampled = [n[0] if at and n else 0 for at, n in enumerate(lengths)]
        run.lengths = row["id"], np.cumsum([sum(n) for n in lengths]), np.cumsum(sampled)
    _, tokens, sampled_until = run.lengths
    event = min(int(np.searchsorted(tokens, offset, side="right")), len(places) - 1)
    return _Begin(event, int(tokens[event - 1]), int(sampled_until[event - 1])) if event else _Begin(0, 0, 0)


def _columns(
    run: OpenRun, row: Mapping[str, Any], places: Sequence[int], begin: _Begin, most: int
) -> tuple[dict[str, list[Any]], bool]:
    """The columns from an event on, up to so many tokens or a few more, and whether that is all."""
    events: list[dict[str, Any]] = []
    count, whole = 0, True
    for at in range(begin.event, len(places), EVENTS):
        piece = read_all(run, row, places[at : at + EVENTS])
        events += piece
        count += sum(sum(event["columns"]["lengths"]) for event in piece)
        if count > most and at + EVENTS < len(places):
            whole = False
            break
    return _columns_of(events, max(0, begin.event - 1), whole=whole), whole


def _columns_of(events: Sequence[Mapping[str, Any]], turn: int, *, whole: bool) -> dict[str, list[Any]]:
    """The columns of `tokens` of some events, the first of whose turns has this number.

    Args:
        whole: they are the episode's last ones; what was observed after its last turn is none of its tokens.
    """
    found: dict[str, list[Any]] = {name: [] for name in ("ids", "origin", "turn", "logprob", "version")}

    def extend(
        ids: Sequence[int],
        origin: int,
        turn: int,
        logprobs: Sequence[float] | None = None,
        versions: Sequence[int] | None = None,
    ) -> None:
        found["ids"] += ids
        found["origin"] += [origin] * len(ids)
        found["turn"] += [turn] * len(ids)
        found["logprob"] += [None] * len(ids) if logprobs is None else [round(v, 6) for v in logprobs]
        found["version"] += [None] * len(ids) if versions is None else versions

    turns = [event for event in events if event["event"] == "turn"]
    if events and events[0]["event"] == "started":
        extend(events[0]["prompt_ids"], PROMPT, -1)
    for number, event in enumerate(turns):
        sampled, switches = event["token_ids"], event.get("weight_switches", ())
        versions = token_versions(len(sampled), event["weight_version"], switches)
        extend(sampled, SAMPLED, turn + number, event["logprobs"], versions)
        if number + 1 < len(turns) or not whole:
            extend(event["observation_ids"], OBSERVED, turn + number)
    return found


def _of_trainer(
    origin: Sequence[int], trained: TrainedColumns | None, first: int
) -> dict[str, list[float | None]]:
    """The columns `trainer` and `share`, from the sampled token of this number on."""
    columns: dict[str, list[float | None]] = {}
    for name in ("trainer", "share"):
        known = () if trained is None else trained.log_probs if name == "trainer" else trained.shares
        values = iter(known[first:])
        columns[name] = [_number(next(values, np.nan)) if one == SAMPLED else None for one in origin]
    return columns


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None
