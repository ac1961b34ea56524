"""Why an episode was not trained, in one sentence, by the ledger; what a run without one can still tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox_rl.ledger import SampleEnd
from sandbox_rl.view.opened import OpenRun

__all__ = ["why_not_trained"]

_WHY = {end.value: end.why for end in SampleEnd}


def why_not_trained(run: OpenRun, row: Mapping[str, Any]) -> dict[str, Any]:
    """The sentence, and what it rests on.

    Args:
        row: of the episode, with `end`, `advantage` and `trained` of the ledger.
    """
    if row.get("end"):
        update = f" Update {row['trained']}."
        return {
            "end": row["end"],
            "sentence": _WHY[row["end"]] + update,
            "advantage": row["advantage"],
        }
    return {"end": None, "sentence": _without_ledger(run, row), "advantage": None}


def _without_ledger(run: OpenRun, row: Mapping[str, Any]) -> str:
    if row["phase"] == "eval" or run.kind == "evaluation":
        return "It measures the policy: episodes of an evaluation are never trained on."
    if row["replaced"]:
        return "The run was resumed from before its update, which was done again with other samples."
    if row["phase"] == "cancelled":
        return SampleEnd.CUT.why
    if row["state"] == "live":
        return "It is under way." if run.state == "running" else "The run ended before it did."
    if row["state"] == "abandoned":
        return "It was cancelled, or failed on our side and was tried again in a fresh sandbox."
    if row["masked"]:
        return SampleEnd.OVERLONG.why
    if row["reward"] is None:
        return SampleEnd.NOT_JUDGED.why
    if (run.path / "ledger.jsonl").exists():
        return "Not decided yet: its update has not finished, or never did."
    return "Not recorded: this run has no ledger."
