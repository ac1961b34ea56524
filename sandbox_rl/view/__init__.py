"""A run as people look at it: a page, a file of it, the terminal, and files that other tools open."""

from enum import StrEnum

__all__ = ["Format"]


class Format(StrEnum):
    """What episodes are written as; here, where `--help` finds it soon."""

    JSONL = "jsonl"
    HARBOR = "harbor"
    INSPECT = "inspect"
