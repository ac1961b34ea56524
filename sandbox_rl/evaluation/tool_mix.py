"""What a policy uses its computer for: network, files, computation.

Rules over the text of a call. One call may count for several uses.
They are rules of this project: the paper does not publish its own, so shares are not comparable to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class Use(StrEnum):
    """The three meta-capabilities of arXiv 2601.16206."""

    NETWORK = "network"
    FILES = "files"
    COMPUTATION = "computation"


_START = r"(?:^|[;&|(\n`]|\$\(|\b(?:then|do|else|sudo|xargs|time|nohup|env)\s)[^\S\n]*"
"""Where a command can begin in a shell line."""

_NETWORK = re.compile(
    _START + r"(?:curl|wget|ssh|scp|rsync|ftp|ping|nslookup|dig|nc)\b"
    r"|" + _START + r"(?:(?:python3?\s+-m\s+)?pip3?|uv\s+pip|npm|conda|apt(?:-get)?|cargo|gem)\s+"
    r"(?:-\S+\s+)*(?:install|update|download|add)\b"
    r"|\bgit\s+(?:clone|fetch|pull)\b"
    r"|\b(?:import|from)\s+(?:requests|httpx|aiohttp|urllib\.request|socket)\b"
)
_FILES = re.compile(
    _START + r"(?:cat|head|tail|less|more|grep|egrep|fgrep|rg|sed|awk|find|ls|tree|wc|cut|sort|uniq|diff|"
    r"file|stat|strings|nl|tac|cp|mv|unzip|tar)\b"
    r"|\bopen\(|\bread_text\(|\bread_csv\(|\bos\.(?:listdir|walk|scandir)\(|\bglob\("
)
_COMPUTATION = re.compile(
    _START + r"(?:bc|dc|expr|factor|seq|node|ruby|perl|Rscript|octave|gcc|g\+\+|ghc|sqlite3)\b"
    r"|" + _START + r"(?:timeout\s+\S+\s+)?python[\d.]*\s+(?!-m\s+pip\b)\S"
    r"|\$\(\(|" + _START + r"\./\S+"
)


def uses_of(tool: str, arguments: Mapping[str, Any]) -> frozenset[Use]:
    """What one call is for; empty for anything that no rule matches, such as `echo 42 > answer.txt`."""
    if tool == "str_replace_editor":
        return frozenset({Use.FILES}) if arguments.get("command") == "view" else frozenset()
    command = arguments.get("command")
    if tool != "execute_bash" or not isinstance(command, str):
        return frozenset()
    text = command[:20_000]
    rules = ((Use.NETWORK, _NETWORK), (Use.FILES, _FILES), (Use.COMPUTATION, _COMPUTATION))
    return frozenset(use for use, rule in rules if rule.search(text))
