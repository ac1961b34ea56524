"""Names of the files that data put into a sandbox."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_SEGMENT_BYTES = 255
_PATH_BYTES = 1024
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_VARIANTS = (("\u180b", "\u180f"), ("\ufe00", "\ufe0f"), ("\U000e0100", "\U000e01ef"))
"""Letters, marks and symbols that are drawn as nothing, beside those of the categories."""
_LIKE_SEPARATORS = frozenset("\u2024\u2044\u2215\u2571\u29f8\uff0e\uff0f\uff3c\ufe52")
"""Drawn like a slash, a backslash or a dot: one name shows as a path, or as one with another extension."""


def problem_of_name(name: str) -> str | None:
    """Why `name` cannot be a relative POSIX path inside the input folder; None if it can."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair"
    if not name:
        return "is empty"
    if name.startswith("/") or re.match(r"[A-Za-z]:[\\/]", name):
        return "is an absolute path"
    if any(unicodedata.category(char) == "Cc" for char in name):
        return "holds a control character"
    segments = name.split("/")
    if any(segment in ("", ".", "..") for segment in segments):
        return "has an empty, '.' or '..' segment"
    if len(encoded) > _PATH_BYTES or any(len(segment.encode()) > _SEGMENT_BYTES for segment in segments):
        return f"is longer than {_SEGMENT_BYTES} bytes a segment or {_PATH_BYTES} in all"
    return None


def misleading(name: str) -> str | None:
    """How `name` shows a person something else than what it is; None if it does not.

    Characters that reorder a line, or are drawn as nothing or as a space, make `gpj.exe` read `exe.jpg` and
    two names look alike; a leading hyphen is an option to whatever is given the name.
    """
    if any(_is_unseen(char) for char in name):
        return "holds a character that is invisible or changes the direction of what is shown"
    if not _LIKE_SEPARATORS.isdisjoint(name):
        return "holds a character that looks like a slash or a dot"
    segments = name.split("/")
    if any(segment.startswith("-") for segment in segments):
        return "begins with a hyphen, which programs take for an option"
    if any(segment != segment.strip() or segment.endswith(".") for segment in segments):
        return "begins or ends with a space, or ends with a dot"
    return None


def _is_unseen(char: str) -> bool:
    """Controls, formats (direction, zero width), variants, separators but the plain space, no meaning."""
    category = unicodedata.category(char)
    variant = any(first <= char <= last for first, last in _VARIANTS)
    return (category[0] in "CZ" and char != " ") or variant or char in _UNSEEN


def safe_name(name: str) -> str:
    """`name` made a harmless relative path; equal names stay equal, so collisions can be seen."""
    text = name.encode("utf-8", "replace").decode()
    text = "".join("_" if unicodedata.category(char) == "Cc" else char for char in text).replace("\\", "/")
    text = re.sub(r"^[A-Za-z]:", "", text)
    segments = [part for part in text.split("/") if part not in ("", ".", "..")]
    return "/".join(_cut(segment) for segment in segments[-8:]) or "file"


def title_to_name(title: str, fallback: str) -> str:
    """A plain file name from a document's title: letters, digits, `_` and `-`, at most 60 characters."""
    plain = unicodedata.normalize("NFKC", title.encode("utf-8", "replace").decode())
    stem = re.sub(r"[^\w-]+", "_", plain).strip("_")[:60].strip("_")
    return f"{stem}.txt" if stem else fallback


def collision(names: Iterable[str]) -> str | None:
    """The first name that would overwrite another, or be a folder and a file at once; None if none."""
    seen: dict[str, str] = {}
    folders: set[str] = set()
    for name in names:
        key = unicodedata.normalize("NFC", name)
        parents = {key[:at] for at, char in enumerate(key) if char == "/"}
        if key in seen or key in folders or any(parent in seen for parent in parents):
            return name
        seen[key] = name
        folders |= parents
    return None


def _cut(segment: str) -> str:
    encoded = segment.encode()
    return segment if len(encoded) <= 120 else encoded[:120].decode(errors="ignore")
