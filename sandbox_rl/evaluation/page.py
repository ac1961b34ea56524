"""Results as a person reads them: on the screen, and as Markdown, of one run or several side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sandbox_rl.display import Display
from sandbox_rl.errors import ConfigError
from sandbox_rl.evaluation.results import ModeResults, Results
from sandbox_rl.evaluation.statistics import Mean, paired_difference
from sandbox_rl.outputs import check_new, write_new

_COUNTS = {
    "turns": "turns per episode",
    "calls": "tool calls per episode",
    "tokens/prompt": "prompt tokens",
    "tokens/sampled": "sampled tokens per episode",
    "tokens/observed": "observed tokens per episode",
    "seconds/episode": "seconds per episode",
    "seconds/generation": "… in generation",
    "seconds/execution": "… in execution",
}
_SHARES = {
    "tokens/observed_share": "environment's share of tokens",
    "use/network": "calls that use the network",
    "use/files": "calls that read files",
    "use/computation": "calls that compute",
}


def show_results(results: Results, display: Display) -> None:
    """What `eval` found: a column for each mode, and their difference where both were run."""
    columns = _columns_of([results])
    rows = _rows_of([found for _, found in columns])
    if results.comparison is not None:
        rows.append(["sandbox minus plain", str(results.comparison), ""])
    display.table(f"{results.name}, {results.tasks} tasks", ["", *(mode for mode, _ in columns)], rows)


def no_calls_hint(results: Results, *, endpoint: bool) -> str:
    """What to say where not one tool call was read in all sandbox episodes; "" where some were."""
    sandbox = results.modes.get("sandbox")
    if sandbox is None or not sandbox.episodes or sandbox.means.get("calls", 1.0) > 0:
        return ""
    fix = (
        "start vLLM with --enable-auto-tool-choice and the --tool-call-parser of this model, SGLang with "
        "--tool-call-parser, llama.cpp with --jinja"
        if endpoint
        else "look at the journal; is chat.call_format the one that the model writes?"
    )
    return f"warning: no tool call could be read in {sandbox.episodes} episodes, expected some: {fix}"


def compare(runs: Sequence[Path], *, output: Path | None = None) -> str:
    """The Markdown page of the runs, the first being what the others are measured against.

    Args:
        output: file to write the page to as well; must not exist.

    Raises:
        ConfigError: fewer than two runs, a run has no results, or the file cannot be written.
    """
    if len(runs) < 2:
        raise ConfigError(f"compare: {len(runs)} run given, expected at least two")
    if output is not None:
        check_new(output, "--output")
    text = page([_load_results(run) for run in runs])
    if output is not None:
        try:
            write_new(output, text, "--output")
        except OSError as error:
            raise ConfigError(f"--output: {output} cannot be written ({error}); name another file") from error
    return text


def _load_results(run: Path) -> Results:
    """The results in a directory that `eval` wrote, or in its `results.json`.

    Raises:
        ConfigError: there are none.
    """
    path = run / "results.json" if run.is_dir() else run
    if (path.parent / "recipe.yaml").is_file() and not (path.parent / "evaluation.json").is_file():
        raise ConfigError(
            f"{run}: is a training run, expected what `sandbox-rl eval` wrote; evaluate its export "
            f"(sandbox-rl eval RECIPE --model {path.parent / 'export'}) and compare that"
        )
    try:
        return Results.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}), expected what `sandbox-rl eval` wrote; name its "
            "output directory, or finish the run with --resume"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        first = str(error).partition("\n")[0]
        raise ConfigError(
            f"{path}: is not a result of `sandbox-rl eval` ({type(error).__name__}: {first}); evaluate "
            "again, or write it anew by --resume"
        ) from error


def _columns_of(runs: Sequence[Results]) -> list[tuple[str, ModeResults]]:
    """(heading, results) of every mode of every run; the run's name is left out where there is one run."""
    single = len(runs) == 1
    return [
        (mode if single else f"{run.name}, {run.model}, {mode}", found)
        for run in runs
        for mode, found in run.modes.items()
    ]


def _rows_of(columns: Sequence[ModeResults]) -> list[list[str]]:
    """A title and one cell per column for everything that is reported."""
    rows = accuracy_rows(columns)
    parts = sorted({part for c in columns for part in c.parts})
    for k in sorted({k for c in columns for k in c.pass_at}):
        rows.append([f"pass@{k}", *(_percent(c.pass_at.get(k)) for c in columns)])
    for part in parts:
        found = [c.parts.get(part) for c in columns]
        most = max(max(p.pass_at, default=1) for p in found if p is not None)
        if most > 1 and len(parts) > 1:
            rows.append(
                [f"  {part} pass@{most}", *(_percent(p.pass_at.get(most) if p else None) for p in found)]
            )
    rows += [[title, *(_number(c.means.get(key)) for c in columns)] for key, title in _COUNTS.items()]
    rows += [[title, *(_percent(c.means.get(key)) for c in columns)] for key, title in _SHARES.items()]
    for stop in sorted({stop for c in columns for stop in c.stops}):
        rows.append([f"ended by {stop}", *(_percent(c.stops.get(stop, 0.0)) for c in columns)])
    judged = (len(c.tasks) for c in columns)
    rows.append(["tasks judged", *(str(count) for count in judged)])
    rows.append(["episodes judged", *(str(c.episodes) for c in columns)])
    if any(c.by_fallback for c in columns):
        rows.append(["  of them by a rule, the judge being down", *(str(c.by_fallback) for c in columns)])
    if any(c.unjudged for c in columns):
        rows.append(["episodes not judged", *(str(c.unjudged) for c in columns)])
        rows.append(["  of them infrastructure faults", *(str(c.faults) for c in columns)])
    return rows


def accuracy_rows(columns: Sequence[ModeResults]) -> list[list[str]]:
    """The first rows: accuracy, over all tasks and by part."""
    rows = [["accuracy (avg@k)", *(_said(c.accuracy) for c in columns)]]
    parts = sorted({part for c in columns for part in c.parts})
    for part in parts:
        found = [c.parts.get(part) for c in columns]
        rows.append([f"  {part}", *(_said(p.accuracy if p else None) for p in found)])
    if len(parts) > 1:
        rows.append(["mean of the parts", *(_percent(c.macro) for c in columns)])
    return rows


def page(runs: Sequence[Results]) -> str:
    """One Markdown page; deterministic for equal results."""
    columns = _columns_of(runs)
    single = runs[0] if len(runs) == 1 else None
    title = f"Evaluation: {single.name}" if single else f"Comparison of {len(runs)} evaluations"
    lines = [f"# {_cell(title)}", ""]
    for run in runs:
        lines.append(f"- **{_cell(run.name)}**: model `{_cell(run.model)}`, {_size(run)}, seed {run.seed}")
        lines += [f"  - left out: {_cell(part)} ({_cell(why)})" for part, why in run.skipped.items()]
        if run.unjudged:
            lines.append(f"  - {run.unjudged} episodes were not judged; the numbers are of the others")
    lines += ["", *_table(["", *(heading for heading, _ in columns)], _rows_of([c for _, c in columns]))]
    compared = [run for run in runs if run.comparison is not None]
    if compared:
        lines += ["", "## Sandbox minus plain", ""]
        lines += _table(
            ["run", "part", "difference, 95 % interval", "tasks"],
            [
                [run.name, part, str(gap), str(gap.tasks)]
                for run in compared
                for part, gap in (("all", run.comparison), *run.comparison_by_part.items())
                if gap is not None
            ],
        )
    if len(runs) > 1:
        lines += ["", f"## Difference from the first run ({_cell(runs[0].name)}, {_cell(runs[0].model)})", ""]
        lines += _table(["run", "mode", "difference, 95 % interval", "tasks in common"], _against_first(runs))
    lines += [
        "",
        "In brackets: 95 % intervals over tasks (Wilson's, with the effective number of tasks), of "
        "differences over pairs of tasks. pass@k: unbiased (arXiv 2107.03374). "
        "Episodes that were not judged count neither way.",
        "",
    ]
    return "\n".join(lines)


def _against_first(runs: Sequence[Results]) -> list[list[str]]:
    """Paired over the tasks that are the same: of equal id, prompt, gold answer, files and scorer."""
    first, *others = runs
    rows = []
    for run in others:
        same = {task for task, key in run.keys.items() if first.keys.get(task) == key}
        for mode in run.modes:
            if mode not in first.modes:
                continue
            mine, theirs = (
                {task: value for task, value in of.modes[mode].tasks.items() if task in same}
                for of in (run, first)
            )
            gap = paired_difference(mine, theirs)
            tasks = 0 if gap is None else gap.tasks
            rows.append([f"{run.name}, {run.model}", mode, _said(gap), str(tasks)])
    return rows


def _size(run: Results) -> str:
    samples = {samples for _, samples in run.parts.values()}
    if len(samples) == 1:
        return f"{run.tasks} tasks, {samples.pop()} samples each"
    each = ", ".join(f"{part} {tasks} × {count}" for part, (tasks, count) in run.parts.items())
    return f"{run.tasks} tasks × samples: {_cell(each)}"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        _line(heading),
        _line(["---", *("---:" for _ in heading[1:])]),
        *(_line(row) for row in rows),
    ]


def _said(number: Mean | None) -> str:
    return "–" if number is None else str(number)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    """Names come from outside: no table, markup or line break can come of them."""
    return " ".join(
        text.replace("\\", "\\\\").replace("|", "\\|").replace("`", "'").replace("<", "&lt;").split()
    )
