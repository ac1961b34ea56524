"""A first recipe for a user's own rows, model and machine, with a reason beside each value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import yaml

from sandbox_rl.errors import ConfigError
from sandbox_rl.tasks.rows import Rows
from sandbox_rl.training.placement import GIB, Card

LOOKED_AT = 200
"""Rows whose answers decide on the scorer."""
NAMES: Mapping[str, Sequence[str]] = {
    "prompt": ("prompt", "problem", "question", "problem_statement", "instruction", "query", "input"),
    "answer": ("answer", "ground_truth", "gold", "target", "label", "solution", "output", "expected"),
    "id": ("id", "uid", "task_id", "question_id"),
    "files": ("files", "input_files"),
    "context": ("context", "contexts", "document", "documents", "passage", "passages", "article"),
}
"""Field of a task → names that its column usually has, the likeliest first."""
NEEDED = ("prompt", "answer")
_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+(e[-+]?\d+)?%?", re.IGNORECASE)
_LETTERS = re.compile(r"[A-J](\s*,\s*[A-J])*")
_FORMULA = re.compile(r"\\[a-z]+|\$|\^")
ON_CARDS, ON_CPU = "Qwen/Qwen3-4B-Instruct-2507", "HuggingFaceTB/SmolLM2-135M-Instruct"
LARGE = 70 * GIB
"""A card that trains some billions of weights in full, sharded or not; smaller ones get adapters."""


@dataclass(frozen=True, slots=True)
class Guess:
    """What rows seem to be.

    Args:
        columns: field of a task → column.
        why: the reason for the scorer, with an example.
    """

    columns: Mapping[str, str]
    domain: str
    scorer: str
    why: str


def guess(rows: Rows, given: Mapping[str, str]) -> Guess:
    """Look at the columns of a table and at its first answers.

    Args:
        given: columns that are known: `prompt`, `answer`.

    Raises:
        ConfigError: there are no rows, or no column looks like the questions or the answers.
    """
    first = [row for row in islice(rows, LOOKED_AT) if isinstance(row, Mapping)]
    if not first:
        raise ConfigError(
            f"{rows.name}: no rows that can be read, expected some with a question and an answer"
        )
    names = list(first[0])
    columns: dict[str, str] = {}
    for field, usual in NAMES.items():
        lowered = {name.lower(): name for name in names}
        found = given.get(field) or next((lowered[name] for name in usual if name in lowered), None)
        if found is None and field in NEEDED:
            raise ConfigError(
                f"{rows.name}: no column looks like the {field}, expected one of {', '.join(names)} to be "
                f"named; give --{field} COLUMN"
            )
        if found is not None and found not in names:
            raise ConfigError(f"--{field}: {found!r}, expected a column of {rows.name}: {', '.join(names)}")
        if found is not None:
            columns[field] = found
    answers = [str(row.get(columns["answer"], "")).strip() for row in first]
    scorer, why = _scorer([answer for answer in answers if answer])
    if "files" in columns or "context" in columns:
        domain = "context_qa"
    else:
        domain = "math" if scorer == "math" else "general"
    return Guess(columns, domain, scorer, why)


def _scorer(answers: Sequence[str]) -> tuple[str, str]:
    if not answers:
        return "exact", "the first rows have no answers; look at them"
    shown = f"such as {answers[0][:40]!r}"

    def share(fits: Iterable[bool]) -> float:
        return sum(fits) / len(answers)

    if share(_LETTERS.fullmatch(a) is not None for a in answers) > 0.9:
        return "choice", f"answers are letters, {shown}"
    if share(bool(_NUMBER.fullmatch(a) or _FORMULA.search(a)) for a in answers) > 0.8:
        return "math", f"answers are numbers or formulas, {shown}"
    if share(len(a.split()) <= 4 for a in answers) > 0.8:
        return "exact", f"answers are a few words, {shown}; `f1` pays for parts"
    return "rouge_l", f"answers are longer texts, {shown}"


def starter_recipe(
    found: Guess, *, name: str, rows: int, path: str, model: str | None, cards: Sequence[Card]
) -> str:
    """The recipe as YAML with comments.

    Args:
        rows: how many there are.
        path: of the table, relative to the recipe.
        model: path or Hub id; None for what this machine can train.
        cards: of this machine.
    """
    path_of_model = model or (ON_CARDS if cards else ON_CPU)
    adapters = bool(cards) and min(card.memory for card in cards) < LARGE
    processes = max(1, len(cards))
    held_out = min(0.2, max(0.02, round(100 / max(rows, 1), 2)))
    machine = f"{len(cards)} x {cards[0].name}" if cards else "no CUDA card"
    lines = [
        f"# Written by `sandbox-rl init` for {rows:,} rows and this machine ({machine}).",
        "# Change what you like: docs/recipe.md has every key. Then",
        f"#   sandbox-rl train {name}.yaml --dry-run     # checks all of it, trains nothing",
        f"name: {_yaml(name)}",
        "model:",
        f"  path: {_yaml(path_of_model)}"
        + ("  # small enough for a CPU, and for easy tasks only" if path_of_model == ON_CPU else ""),
        f"  dtype: {'bfloat16' if cards else 'float32'}  # computed in; what is trained is float32",
        *["  lora: {r: 32, alpha: 64}  # all weights of some billions want cards of 80 GB"] * adapters,
        "data:",
        "  sources:",
        "    - type: table",
        f"      path: {_yaml(path)}  # relative to this file",
        f"      domain: {found.domain}  # the words around a question; yours: docs/extending.md",
        f"      scorer: {found.scorer}  # {found.why}",
        f"      columns: {_yaml(dict(found.columns))}",
        f"  held_out: {held_out}  # never trained on: measured before, while and after",
        "policy: {type: vllm}  # servers of the policy, on these cards"
        if cards
        else "policy: {type: transformers}  # in this process; with a card: {type: vllm}",
        *["launch: {config: fsdp2}  # the cards share one model"] * (len(cards) > 1 and not adapters),
        f"episode: {{max_turns: {30 if cards else 8}, max_tokens: {16_384 if cards else 1024}}}  # budgets",
        f"evaluation: {{tasks: {100 if cards else 50}, every_steps: 10}}",
        "grpo:",
        f"  max_steps: {100 if cards else 10}",
        "  num_generations: 8  # episodes of a group, which are compared with each other",
        f"  per_device_train_batch_size: {1 if cards else 16}",
        *[f"  gradient_accumulation_steps: {max(8, 64 // processes)}  # 64 episodes an update"] * bool(cards),
        f"  learning_rate: {'1.0e-5' if adapters or not cards else '1.0e-6'}",
        "  lr_scheduler_type: constant",
        "  save_steps: 10",
    ]
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(
        value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("...\n").strip()
