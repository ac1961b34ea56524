r"""The answer in a reply that was given without a sandbox.

With a sandbox the answer is a file that the policy wrote on purpose. Without one it is dug out of
prose, by the rule of the task's scorer, and then scored by that same scorer:

===================  ===================================================================================
scorer               the answer is
===================  ===================================================================================
math, numeric        the last ``\boxed{…}``; else what follows the last "answer is" or "Answer:"; else the
                     last line that holds anything
choice               as above; a lead-in such as "Answer:" is dropped
rules                the whole reply: instruction following judges the response itself
everything else      the last ``\boxed{…}`` where there is one, else the last line
===================  ===================================================================================

Reasoning in ``<think>…</think>`` is dropped first. A reply that stops within its reasoning holds no answer.
"""

from __future__ import annotations

import re

from sandbox_rl.types import Answer, AnswerStatus

_THINK = re.compile(r"<think>.*?</think>", re.DOTALL)
_LEAD = re.compile(
    r"(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|option|choice)s?\s*(?:is|are)?\s*[:=]?\s*", re.IGNORECASE
)
_SAID = re.compile(r"\banswer(?:s)?\s*(?:is|are|:|=)\s*:?\s*([^\n]+)", re.IGNORECASE)
_MARKS = " \t*_#`>"


def answer_of_reply(reply: str, scorer: str) -> Answer:
    """The answer by the table of this module; MISSING where the reply holds none."""
    text = _without_reasoning(reply.replace("\r\n", "\n")).strip()
    if not text:
        return Answer(AnswerStatus.MISSING)
    if scorer == "rules":
        return Answer(AnswerStatus.OK, text)
    boxed = last_boxed(text)
    if boxed is not None:
        # Maths expects the box as in the answer file; everyone else its content.
        return Answer(AnswerStatus.OK, f"\\boxed{{{boxed}}}" if scorer in ("math", "numeric") else boxed)
    last = next(line.strip() for line in reversed(text.split("\n")) if line.strip())
    if scorer in ("math", "numeric", "choice"):
        said = _SAID.findall(text)
        last = said[-1] if said else last
    found = _LEAD.sub("", last.strip(_MARKS), count=1) if _LEAD.match(last.strip(_MARKS)) else last
    found = found.strip(_MARKS)
    if scorer in ("math", "numeric", "choice"):
        found = found.rstrip(".")
    return Answer(AnswerStatus.OK, found) if found else Answer(AnswerStatus.MISSING)


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete ``\boxed{…}``, braces balanced; None where there is none. Linear time."""
    opened: list[int] = []
    last, end = -1, 0
    for brace in re.finditer(r"[{}]", text):
        if brace.group() == "{":
            opened.append(brace.start())
        elif opened and (start := opened.pop()) > last and text.endswith("\\boxed", 0, start):
            last, end = start, brace.start()
    return None if last < 0 else text[last + 1 : end]


def _without_reasoning(text: str) -> str:
    # Only as far as reasoning is closed: behind that each opening would be followed to the end of the text.
    closed = text.rfind("</think>") + len("</think>") if "</think>" in text else 0
    text = _THINK.sub("", text[:closed]) + text[closed:]
    if "</think>" in text:  # the prompt had opened the reasoning
        return text.rpartition("</think>")[2]
    return text.partition("<think>")[0]
