"""The page without a server: a file with everything in it, or a directory with parts loaded on demand."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from sandbox_rl.errors import ConfigError, DataError
from sandbox_rl.outputs import new_directory, write_new
from sandbox_rl.view.api import answer, to_json
from sandbox_rl.view.listing import PAGE
from sandbox_rl.view.opened import OpenRun, open_run
from sandbox_rl.view.page import MODULES, read_page
from sandbox_rl.view.suspicion import look

IN_ONE_FILE = 1_000
"""Episodes that one file may hold."""
IN_A_PART = 50
"""Episodes of a part of a directory."""

Values = dict[str, Any]


def export_page(paths: Sequence[Path], target: Path) -> str:
    """Write the page of these runs; says what was written.

    Args:
        target: a file that ends in `.html`, for at most `IN_ONE_FILE` episodes, else a directory.

    Raises:
        ConfigError: it exists, or there are too many episodes for a file.
        DataError: one of the paths is no run.
    """
    with ExitStack() as stack:
        runs = [stack.enter_context(open_run(path, whole=True)) for path in paths]
        count = sum(run.select("SELECT count(*) AS n FROM episodes")[0]["n"] for run in runs)
        single = target.suffix == ".html"
        if single and count > IN_ONE_FILE:
            raise ConfigError(
                f"--export: {target} would hold {count:,} episodes, expected at most {IN_ONE_FILE:,} in one "
                f"file; name a directory, such as {target.with_suffix('')}"
            )
        for run in runs:
            while look(run, 10):
                pass
        if single:
            write_new(target, _one_file(runs), "--export")
            return f"{target}: {count:,} episodes, {target.stat().st_size / 1e6:.1f} MB"
        with new_directory(target, "--export") as directory:
            _directory(runs, directory)
        return f"{target / 'index.html'}: {count:,} episodes"


def _one_file(runs: Sequence[OpenRun]) -> str:
    values = dict(_common(runs))
    rows: list[list[Any]] = []
    for number, run in enumerate(runs):
        rows.append(_rows(run))
        for row in rows[-1]:
            values |= _of_episode(runs, number, row)
    data = _data(values, rows, {})
    script, chart = _bundle(), read_page("uplot.js").decode()
    style = read_page("uplot.css").decode() + read_page("style.css").decode()
    policy = (
        f"default-src 'none'; script-src {_hash(chart)} {_hash(script)}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return _shell(
        policy,
        f"<style>{style}</style>",
        f'<script type="application/json" id="data">{data}</script>'
        f'<script>{chart}</script><script type="module">{script}</script>',
    )


def _directory(runs: Sequence[OpenRun], directory: Path) -> None:
    values = dict(_common(runs))
    rows: list[list[Values]] = []
    parts: dict[str, int] = {}
    (directory / "parts").mkdir()
    number = 0
    for at, run in enumerate(runs):
        rows.append(_rows(run))
        for first in range(0, len(rows[-1]), IN_A_PART):
            piece: Values = {}
            for row in rows[-1][first : first + IN_A_PART]:
                piece |= _of_episode(runs, at, row)
            parts |= dict.fromkeys(piece, number)
            call = f"sandboxRlPart({number}, {to_json(piece).decode()});"
            (directory / "parts" / f"{number}.js").write_text(call, encoding="utf-8")
            number += 1
    data = _data(values, rows, parts)
    for name in ("uplot.js", "uplot.css", "style.css"):
        (directory / name).write_bytes(read_page(name))
    (directory / "app.js").write_text(_bundle(), encoding="utf-8")
    script = "script-src 'self' file:; style-src 'self' file:; img-src data:"
    page = _shell(
        f"default-src 'none'; {script}; base-uri 'none'; form-action 'none'",
        '<link rel="stylesheet" href="uplot.css"><link rel="stylesheet" href="style.css">',
        f'<script type="application/json" id="data">{data}</script>'
        '<script src="uplot.js"></script><script src="app.js"></script>',
    )
    (directory / "index.html").write_text(page, encoding="utf-8")


def _data(values: Values, rows: list[list[Values]], parts: dict[str, int]) -> str:
    """JSON whose strings hold `<` as an escape, so that nothing in them ends the element around it."""
    return to_json({"values": values, "rows": rows, "parts": parts}).decode().replace("<", "\\u003c")


def _common(runs: Sequence[OpenRun]) -> Iterator[tuple[str, Any]]:
    """What is the same for all episodes."""
    yield _key("runs", {}), answer(runs, "runs", {})
    for number, run in enumerate(runs):
        own = {"run": str(number)}
        for question in ("overview", "choices", "suspicions", "recipe"):
            yield _key(question, own), answer(runs, question, own)
        for flag in run.select("SELECT DISTINCT name FROM flags"):
            query = own | {"rule": flag["name"]}
            yield _key("suspicions", query), answer(runs, "suspicions", query)
        for row in run.select("SELECT DISTINCT task_id FROM episodes"):
            query = own | {"task_id": row["task_id"]}
            yield _key("task", query), answer(runs, "task", query)
        for row in run.select("SELECT DISTINCT step, phase FROM episodes WHERE step IS NOT NULL"):
            query = own | {"step": str(row["step"]), "phase": row["phase"] or "train"}
            yield from _answered(runs, "timeline", query)
        for other in range(len(runs)):
            query = own | {"other": str(other)}
            yield _key("compare", query), answer(runs, "compare", query)


def _of_episode(runs: Sequence[OpenRun], number: int, row: Values) -> Values:
    query = {"run": str(number), "id": row["id"]}
    found = dict(_answered(runs, "episode", query))
    found |= dict(_answered(runs, "tokens", query))
    for offset in range(40, row["turns"] or 0, 40):
        found |= dict(_answered(runs, "episode", query | {"offset": str(offset)}))
    for wanted in _cut_texts(found.get(_key("episode", query), {})):
        found |= dict(_answered(runs, "text", query | wanted))
    first = "SELECT min(id) AS id FROM episodes WHERE siblings = ?"
    if runs[number].select(first, [row["siblings"]]) == [{"id": row["id"]}]:
        found |= dict(_answered(runs, "group", query))
    return found


def _cut_texts(episode: Values) -> Iterator[dict[str, str]]:
    """Questions for the texts of which an episode's answer holds the beginning only."""
    for name, what in (("prompt", "prompt"), ("answer", "answer"), ("reward_detail", "detail")):
        if episode.get(name) and episode[name]["chars"] > len(episode[name]["text"]):
            yield {"what": what}
    for turn in episode.get("turns", []):
        where = {"turn": str(turn["index"])}
        yield {"what": "raw", **where}
        if turn["thought"]["chars"] > len(turn["thought"]["text"]):
            yield {"what": "thought", **where}
        for what, texts in (("call", turn["calls"]), ("observation", turn["observations"])):
            for number, text in enumerate(texts):
                if text["chars"] > len(text["text"]):
                    yield {"what": what, **where, "number": str(number)}


def _answered(runs: Sequence[OpenRun], question: str, query: dict[str, str]) -> Iterator[tuple[str, Any]]:
    try:
        yield _key(question, query), answer(runs, question, query)
    except DataError:
        return  # the page says that it is not there


def _rows(run: OpenRun) -> list[Values]:
    rows: list[Values] = []
    while True:
        page = answer([run], "episodes", {"offset": str(len(rows))})["rows"]
        rows += page
        if len(page) < PAGE:
            return rows


def _key(question: str, query: dict[str, str]) -> str:
    """As `data.js` makes it."""
    return f"{question}?{urlencode(sorted(query.items()))}"


def _bundle() -> str:
    """All modules as one script: what they import from each other is in one scope."""
    pieces = []
    for name in MODULES:
        text = read_page(name).decode()
        text = re.sub(r"^import .*?;\n", "", text, flags=re.M)
        pieces.append(re.sub(r"^export (?=async|function|const)", "", text, flags=re.M))
    return "(() => {\n" + "".join(pieces) + "})();\n"


def _hash(content: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"


def _shell(policy: str, head: str, scripts: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><title>sandbox_rl</title><link rel="icon" href="data:,">'
        f'{head}</head><body><header id="top"></header><main id="main" tabindex="-1"></main>'
        f'<dialog id="help" aria-label="Keyboard"></dialog>{scripts}</body></html>\n'
    )
