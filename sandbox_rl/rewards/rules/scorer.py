"""Instructions about form that a rule can verify, named as in IFEval and (`ifbench`) IFBench.

Source of the names, arguments and meanings: Zhou et al., "Instruction-Following Evaluation for Large
Language Models" (2023). Words and sentences are counted by pattern, not by a trained tokenizer, and
`language:response_language` is not offered, since it needs a language detector.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sandbox_rl.rewards.base import BadGold
from sandbox_rl.rewards.rules.ifbench import IFBENCH_RULES
from sandbox_rl.types import Task

Arguments = Mapping[str, Any]


def check_gold(task: Task) -> None:
    """Raise `BadGold` unless every instruction is known and has its arguments."""
    for name, arguments in _instructions(task):
        _holds(name, arguments, "A sample.")


def score(answer: str, task: Task) -> Mapping[str, float]:
    """1.0 if every instruction holds, else 0.0; part `rules_held` is the share that holds.

    With `metadata["loose"]` true an instruction also counts when it holds without asterisks or
    without the first or last line (IFEval's loose accuracy).
    """
    instructions = _instructions(task)
    texts = _variants(answer) if task.metadata.get("loose") else (answer,)
    held = [any(_holds(name, args, text) for text in texts) for name, args in instructions]
    return {"value": float(all(held)), "rules_held": sum(held) / len(held)}


def _instructions(task: Task) -> list[tuple[str, Arguments]]:
    given: Any = task.metadata
    if "instruction_id_list" not in given:
        try:
            given = json.loads(task.answer)
        except (TypeError, ValueError) as error:
            raise BadGold(
                "expected 'instruction_id_list' and 'kwargs' in the metadata or the answer"
            ) from error
    names = given.get("instruction_id_list") if isinstance(given, Mapping) else None
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise BadGold(f"'instruction_id_list' is {names!r:.80}; expected a list of names")
    arguments = given.get("kwargs") or [{}] * len(names)
    if len(arguments) != len(names):
        raise BadGold(f"{len(names)} instructions but {len(arguments)} entries in 'kwargs'")
    for name in names:
        if name not in RULES:
            raise BadGold(f"instruction {name!r} cannot be verified by rule; known are {', '.join(RULES)}")
    return [(name, args or {}) for name, args in zip(names, arguments, strict=True)]


def _holds(name: str, arguments: Arguments, text: str) -> bool:
    try:
        return bool(text.strip()) and RULES[name](text, arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise BadGold(f"instruction {name!r} lacks or misuses an argument: {error!r}") from error


def _variants(text: str) -> tuple[str, ...]:
    lines = text.split("\n")
    cuts = (text, "\n".join(lines[1:]).strip(), "\n".join(lines[:-1]).strip(), "\n".join(lines[1:-1]).strip())
    return tuple(dict.fromkeys((*cuts, *(cut.replace("*", "") for cut in cuts))))


def _compare(count: int, relation: str | None, bound: int) -> bool:
    if relation in (None, "at least"):
        return count >= bound
    if relation == "less than":
        return count < bound
    raise ValueError(f"relation {relation!r}; expected 'at least' or 'less than'")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def _count(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _paragraphs(text: str, pattern: str) -> list[str]:
    return [part.strip() for part in re.split(pattern, text) if part.strip()]


def _sentences(text: str) -> list[str]:
    return re.findall(r"[^.!?\s][^.!?]*(?:[.!?]+(?=\s|$|[\"')])|$)", text)


def _first_word(text: str, args: Arguments) -> bool:
    parts = _paragraphs(text, r"\n\s*\n")
    at = int(args["nth_paragraph"])
    if len(parts) != int(args["num_paragraphs"]) or not 1 <= at <= len(parts):
        return False
    first = _words(parts[at - 1])
    return bool(first) and first[0].lower() == str(args["first_word"]).lower()


def _json(text: str, args: Arguments) -> bool:
    body = (
        text.strip().removeprefix("```json").removeprefix("```Json").removeprefix("```").removesuffix("```")
    )
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def _two_responses(text: str, args: Arguments) -> bool:
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


RULES: Mapping[str, Callable[[str, Arguments], bool]] = {
    "keywords:existence": lambda text, args: all(_count(text, word) for word in args["keywords"]),
    "keywords:forbidden_words": lambda text, args: (
        not any(_count(text, word) for word in args["forbidden_words"])
    ),
    "keywords:frequency": lambda text, args: _compare(
        _count(text, args["keyword"]), args.get("relation"), int(args["frequency"])
    ),
    "keywords:letter_frequency": lambda text, args: _compare(
        text.lower().count(str(args["letter"]).lower()), args.get("let_relation"), int(args["let_frequency"])
    ),
    "length_constraints:number_sentences": lambda text, args: _compare(
        len(_sentences(text)), args.get("relation"), int(args["num_sentences"])
    ),
    "length_constraints:number_paragraphs": lambda text, args: (
        len(_paragraphs(text, r"\s*\*\*\*\s*")) == int(args["num_paragraphs"])
    ),
    "length_constraints:number_words": lambda text, args: _compare(
        len(_words(text)), args.get("relation"), int(args["num_words"])
    ),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": lambda text, args: (
        len(re.findall(r"\[[^\[\]\n]+\]", text)) >= int(args["num_placeholders"])
    ),
    "detectable_content:postscript": lambda text, args: (
        re.search(rf"^\s*{re.escape(args['postscript_marker'])}", text, re.IGNORECASE | re.MULTILINE)
        is not None
    ),
    "detectable_format:number_bullet_lists": lambda text, args: (
        len(re.findall(r"^\s*(?:\*(?!\*)|-)\s+\S", text, re.MULTILINE)) == int(args["num_bullets"])
    ),
    "detectable_format:number_highlighted_sections": lambda text, args: (
        len(re.findall(r"\*\*[^*\n]+\*\*|\*[^*\n]+\*", text)) >= int(args["num_highlights"])
    ),
    "detectable_format:multiple_sections": lambda text, args: (
        len(re.findall(rf"{re.escape(args['section_spliter'])}\s?\d+", text)) >= int(args["num_sections"])
    ),
    "detectable_format:json_format": _json,
    "detectable_format:title": lambda text, args: re.search(r"<<[^<>\n]*\w[^<>\n]*>>", text) is not None,
    "detectable_format:constrained_response": lambda text, args: any(
        option in text for option in ("My answer is yes.", "My answer is no.", "My answer is maybe.")
    ),
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": lambda text, args: (
        text.strip().lower().startswith(args["prompt_to_repeat"].strip().lower())
    ),
    "startend:end_checker": lambda text, args: (
        text.strip().strip('"').lower().endswith(args["end_phrase"].strip().lower())
    ),
    "startend:quotation": lambda text, args: (
        len(text.strip()) > 1 and text.strip().startswith('"') and text.strip().endswith('"')
    ),
    "change_case:capital_word_frequency": lambda text, args: _compare(
        sum(map(str.isupper, _words(text))), args.get("capital_relation"), int(args["capital_frequency"])
    ),
    "change_case:english_capital": lambda text, args: text.isupper(),
    "change_case:english_lowercase": lambda text, args: text.islower(),
    "punctuation:no_comma": lambda text, args: "," not in text,
    **IFBENCH_RULES,
}
"""Name of an instruction → whether a text follows it, given the instruction's arguments."""
