"""`results.json` of a run: what its held-out tasks came to, before and after training."""

from __future__ import annotations

import json
from collections.abc import Mapping

from sandbox_rl.errors import ConfigError
from sandbox_rl.evaluation.results import Results
from sandbox_rl.runs.directory import RunDirectory

__all__ = ["card_lines", "known_results", "write_results"]

WHEN = ("before", "after")


def write_results(run: RunDirectory, results: Mapping[str, Results | None]) -> None:
    """Write it anew: when ("before" or "after") → results, as `sandbox-rl eval` writes its own."""
    run.write_json("results.json", {when: r.to_json() for when, r in results.items() if r is not None})


def known_results(run: RunDirectory) -> dict[str, Results]:
    """When → results, as far as an earlier start of this run has written them.

    Raises:
        ConfigError: the file was written by another version.
    """
    path = run.path / "results.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {when: Results.from_json(found[when]) for when in WHEN if when in found}
    except OSError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: not what this version writes ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "move it away to go on without it"
        ) from error


def card_lines(results: Mapping[str, Results | None]) -> dict[str, str]:
    """Metric → value for a model card."""
    return {
        f"held-out accuracy {when} training": r.headline() for when, r in results.items() if r is not None
    }
