"""Whether two places speak of the same tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

__all__ = ["fingerprint", "first_difference"]


def fingerprint(template: str, vocabulary: Mapping[str, int]) -> str:
    """SHA-256 over the chat template and the vocabulary (token text → id, added tokens included)."""
    digest = hashlib.sha256(template.encode("utf-8", "surrogatepass"))
    for token, token_id in sorted(vocabulary.items(), key=lambda item: (item[1], item[0])):
        digest.update(b"\0%d\0" % token_id)
        digest.update(token.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def first_difference(ours: Mapping[str, int], theirs: Mapping[str, int]) -> str | None:
    """The token with the lowest id on which two vocabularies differ, in words; None if they agree."""
    pairs = ours.items() ^ theirs.items()
    if not pairs:
        return None
    token, _ = min(pairs, key=lambda item: (item[1], item[0]))
    return f"token {token!r} has id {ours.get(token, 'none')} here and {theirs.get(token, 'none')} there"
