"""Lists of episodes: filtered, sorted, a page at a time, as quick at the end of a million as at the start."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sandbox_rl.errors import DataError
from sandbox_rl.view.opened import SORTED, OpenRun

PAGE = 100
"""Episodes of a page."""
SQL_SECONDS = 5.0
"""A person's own SQL may take so long."""

_EQUAL = ("phase", "step", "domain", "task_id", "stop", "state", "siblings", "part", "mode")
_COLUMNS = (
    "id, state, replaced, phase, step, task_id, domain, stop, fault, reward, masked, turns, prompt, sampled, "
    "observed, seconds, answer, siblings, started"
)


def list_episodes(run: OpenRun, query: Mapping[str, str]) -> dict[str, Any]:
    """One page of the episodes that a query asks for.

    Args:
        query: `sort` and `desc`, `offset`; equal to: phase, step, domain, task_id, stop, state, siblings,
            part, mode; `reward_min`, `reward_max`; `flag` and `end` (names); `text`, in id, task, answer and
            the scorer's words; `sql`, any condition on the table `episodes`.

    Returns:
        `rows`, their `total` on all pages, and how many a `page` has.

    Raises:
        DataError: the SQL cannot be run, or a number is none.
    """
    conditions, values = _conditions(query)
    sort = query.get("sort", "started")
    sort, way = sort if sort in SORTED else "started", "DESC" if query.get("desc") == "1" else "ASC"
    order = f"ORDER BY {sort} {way}, episodes.rowid {way}"
    page = f"{order} LIMIT {PAGE} OFFSET {max(0, int(_number(query, 'offset') or 0))}"
    with _guarded(run, own="sql" in query):
        where = f"FROM episodes WHERE {' AND '.join(conditions) or '1'}"
        if "text" in query or "sql" in query:  # no index helps: one look at all rows for page and count
            found = run.select(f"SELECT rowid AS place, count(*) OVER () AS n {where} {page}", values)
        else:
            found = run.select(f"SELECT rowid AS place {where} {page}", values)
        total = (found[0] if found else {}).get("n")
        if total is None:
            total = run.select(f"SELECT count(*) AS n {where}", values)[0]["n"]
    rows = run.select(
        f"SELECT {_COLUMNS}, s.end, s.advantage, "
        "(SELECT group_concat(name, ' ') FROM flags WHERE episode = id) AS flags "
        "FROM episodes LEFT JOIN samples s ON s.episode = id "
        f"WHERE episodes.rowid IN ({', '.join(str(row['place']) for row in found)}) {order}"
    )
    return {"rows": rows, "total": total, "page": PAGE}


def choices(run: OpenRun) -> dict[str, list[Any]]:
    """What can be filtered by: each column's values, as far as they are few."""
    found = {}
    for column in ("phase", "domain", "stop"):
        rows = run.select(  # from each value to the next one: no look at a million rows
            f"WITH RECURSIVE v(x) AS (SELECT min({column}) FROM episodes UNION ALL SELECT (SELECT "
            f"min({column}) FROM episodes WHERE {column} > v.x) FROM v WHERE v.x IS NOT NULL LIMIT 60) "
            "SELECT x FROM v WHERE x IS NOT NULL"
        )
        found[column] = [row["x"] for row in rows]
    found["flag"] = [row["name"] for row in run.select("SELECT DISTINCT name FROM flags ORDER BY name")]
    found["end"] = [row["end"] for row in run.select("SELECT DISTINCT end FROM samples ORDER BY end")]
    return found


def _conditions(query: Mapping[str, str]) -> tuple[list[str], list[Any]]:
    conditions: list[str] = []
    values: list[Any] = []
    for column in _EQUAL:
        if query.get(column):
            conditions.append(f"{column} = ?")
            values.append(int(_number(query, column) or 0) if column == "step" else query[column])
    for name, sign in (("reward_min", ">="), ("reward_max", "<=")):
        if query.get(name):
            conditions.append(f"reward {sign} ?")
            values.append(_number(query, name))
    for name, table, column in (("flag", "flags", "name"), ("end", "samples", "end")):
        if query.get(name):
            conditions.append(f"id IN (SELECT episode FROM {table} WHERE {column} = ?)")
            values.append(query[name])
    if text := query.get("text"):
        like = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        conditions.append(
            "(" + " OR ".join(f"{c} LIKE ? ESCAPE '\\'" for c in ("id", "task_id", "answer", "detail")) + ")"
        )
        values += [f"%{like}%"] * 4
    if query.get("sql"):
        conditions.append(f"({query['sql']})")
    return conditions, values


def _number(query: Mapping[str, str], name: str) -> float | None:
    try:
        return float(query[name]) if query.get(name) else None
    except ValueError:
        raise DataError(f"{name}: {query[name]!r}, expected a number") from None


@contextmanager
def _guarded(run: OpenRun, *, own: bool) -> Iterator[None]:
    """A person's own SQL may read the index, for a while, and nothing else."""
    db = run.index.connection
    if own:
        until = time.monotonic() + SQL_SECONDS
        db.set_authorizer(_may)
        db.set_progress_handler(lambda: time.monotonic() > until, 10_000)
    try:
        yield
    except sqlite3.Error as error:
        raise DataError(f"sql: {error}, expected a condition on the columns of `episodes`") from error
    finally:
        if own:
            db.set_authorizer(None)
            db.set_progress_handler(None, 0)


def _may(action: int, first: str | None, second: str | None, *rest: object) -> int:
    harmless = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE)
    reaching_out = ("load_extension", "writefile", "readfile", "edit")
    named = action == sqlite3.SQLITE_FUNCTION and second not in reaching_out
    return sqlite3.SQLITE_OK if harmless or named else sqlite3.SQLITE_DENY
