"""The names of the field that docs/metrics.md says there are."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


def names_after(heading: str) -> tuple[str, ...]:
    """Of the table that follows a line of the page; each row says unit, formula and source as well."""
    table = PAGE.read_text(encoding="utf-8").partition(f"\n{heading}\n\n")[2].partition("\n\n")[0]
    head, _, *rows = table.splitlines()
    assert head == "| Name | Unit | Formula | Source |"
    found = [re.fullmatch(r"\| `(\S+)` \|( [^|]+ \|){3}", row) for row in rows]
    assert found
    assert all(found)
    return tuple(row[1] for row in found)


UPDATE = names_after("Of each update:")
EVALUATION = names_after("Of each evaluation, below `eval/` and `suite/NAME/`:")
