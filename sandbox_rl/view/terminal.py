"""A run, an episode and its tokens in the terminal; nothing in them can control it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sandbox_rl.tools.text import clean
from sandbox_rl.view.api import answer
from sandbox_rl.view.opened import OpenRun

LISTED = 30
ORIGINS = ("prompt", "sampled", "observed")
TOKEN_COLUMNS = ("ids", "origin", "version", "logprob", "trainer", "share")
_TURNED = {
    ord(c): f"\\u{ord(c):04x}"
    for c in "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
}


def inert(text: str) -> str:
    """Text without escape sequences, control characters or turned directions."""
    return clean(text.translate(_TURNED))


def run_lines(run: OpenRun, query: dict[str, str]) -> Iterator[str]:
    """Whether it learns, and its latest episodes, or those that the query asks for."""
    about = answer([run], "overview", {})
    done, total = about["progress"]["done"], about["progress"]["total"]
    episodes = about["now"]["episodes"]
    yield f"{about['name']}: {about['state']}, {done} of {total or '?'} updates, {episodes} episodes"
    yield about["headline"].text
    for finding in about["findings"]:
        yield f"  {finding.level}: {inert(finding.text)}"
    yield ""
    found = answer([run], "episodes", {"sort": "started", "desc": "1", **query})
    yield f"{'episode':<28} {'step':>5} {'reward':>7} {'turns':>5} {'tokens':>7}  {'ended by':<13} answer"
    for row in found["rows"][:LISTED]:
        yield (
            f"{inert(row['id']):<28} {_number(row['step']):>5} {_number(row['reward']):>7} "
            f"{_number(row['turns']):>5} {_number(row['sampled']):>7}  {row['stop'] or row['state']:<13} "
            f"{inert(' '.join((row['answer'] or '').split()))[:40]}"
        )
    if found["total"] > LISTED:
        yield f"… {found['total']:,} in all; --where 'SQL' chooses, `sandbox-rl view` shows all"


def episode_lines(run: OpenRun, id: str) -> Iterator[str]:
    """An episode, turn by turn."""
    found: dict[str, Any] = answer([run], "episode", {"id": id})
    row = found["episode"]
    yield f"{inert(id)}: {row['domain']}, task {inert(row['task_id'] or '')}, step {_number(row['step'])}"
    yield f"reward {_number(row['reward'])}, {row['stop'] or row['state']}. {found['why']['sentence']}"
    yield f"\n--- prompt, {found['prompt_tokens']} tokens\n{inert(found['prompt']['text'])}"
    shown = 0
    while True:
        for turn in found["turns"]:
            yield f"\n--- turn {turn['index'] + 1}: {turn['sampled']} tokens, {turn['generation']:.1f} s"
            if turn["thought"]["text"]:
                yield _cut(turn["thought"])
            for call in turn["calls"]:
                yield f"> {call['name'] or call['kind']}: {_cut(call)}"
            for observation in turn["observations"]:
                yield f"< {_cut(observation)}"
        shown += len(found["turns"])
        if shown >= found["turns_total"] or not found["turns"]:
            break
        found = answer([run], "episode", {"id": id, "offset": str(shown)})
    yield f"\n--- answer ({found['answer_status']})\n{_cut(found['answer'])}"
    if found["reward_detail"]["text"]:
        yield f"--- scorer: {_cut(found['reward_detail'])}"


def token_lines(run: OpenRun, id: str) -> Iterator[str]:
    """One line per token: place, origin, id, log-probs of sampler and trainer, their difference, the token's
    share of the step's gradient, weights, trained or not, text."""
    yield (
        f"{'#':>6} {'origin':<9} {'id':>8} {'log-prob':>9} {'trainer':>9} {'difference':>10} {'share':>9} "
        f"{'weights':>7} {'trained':<7} text"
    )
    offset = 0
    while True:
        found = answer([run], "tokens", {"id": id, "offset": str(offset)})
        for place, (token, origin, version, sampler, trainer, share) in enumerate(
            zip(*(found[name] for name in TOKEN_COLUMNS), strict=True), offset
        ):
            trained = "no" if origin != 1 else {None: "?", "used": "yes"}.get(found["end"], "no")
            difference = None if sampler is None or trainer is None else trainer - sampler
            word = inert(json.dumps(found["words"][str(token)], ensure_ascii=False))
            yield (
                f"{place:>6} {ORIGINS[origin]:<9} {token:>8} {_decimal(sampler):>9} {_decimal(trainer):>9} "
                f"{'' if difference is None else f'{difference:+.1e}':>10} "
                f"{'' if share is None else f'{share:.3%}':>9} "
                f"{'' if version is None else version:>7} {trained:<7} {word}"
            )
        offset += len(found["ids"])
        if offset >= found["total"]:
            break
    if not found["recorded"]:
        yield "The trainer's log-probs and the tokens' shares of the gradient are not recorded."


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _cut(given: dict[str, Any]) -> str:
    rest = given["chars"] - len(given["text"])
    return inert(given["text"]) + (f"\n… {rest:,} more characters" if rest else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
