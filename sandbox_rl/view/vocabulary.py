"""What token ids say, by the tokenizer that lies in a run or in the model's cache; needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml


class Vocabulary:
    """Text of ids.

    Args:
        path: a `tokenizer.json`; None where there is none: then ids are all there is.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._texts: dict[int, str] = {}

    @cached_property
    def _tokenizer(self) -> object | None:
        if self.path is None:
            return None
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(str(self.path))
        except Exception:  # the library raises this very class for files of other versions
            return None

    @property
    def known(self) -> bool:
        """Whether there is a tokenizer."""
        return self._tokenizer is not None

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids of control tokens: roles, turn ends, padding."""
        if self._tokenizer is None:
            return frozenset()
        added = self._tokenizer.get_added_tokens_decoder()  # type: ignore[attr-defined]
        return frozenset(id for id, token in added.items() if token.special)

    def text(self, ids: Sequence[int], *, control: bool = True) -> str:
        """All of it, or all but control tokens."""
        if self._tokenizer is None:
            return ""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not control))  # type: ignore[attr-defined]

    def words(self, ids: Iterable[int]) -> list[str]:
        """The text of each id; of one that is a part of a character its name in the vocabulary."""
        return [self._word(id) for id in ids]

    def _word(self, id: int) -> str:
        if id not in self._texts:
            text = self.text([id])
            name = "" if self._tokenizer is None else self._tokenizer.id_to_token(id) or ""  # type: ignore[attr-defined]
            if "\ufffd" in text:
                text = name
            elif name.startswith("\u2581"):
                text = name.replace("\u2581", " ")
            self._texts[id] = text
        return self._texts[id]


def vocabulary_of(run: Path) -> Vocabulary:
    """The tokenizer of a run: its own, its export's, a checkpoint's, or that of the model it names."""
    saved = *sorted(run.glob("checkpoints/*")), *sorted(run.glob("model*"))
    for place in (run / "tokenizer", run / "export", *saved):
        if (place / "tokenizer.json").exists():
            return Vocabulary(place / "tokenizer.json")
    model = model_of(run)
    if model and (Path(model) / "tokenizer.json").exists():
        return Vocabulary(Path(model) / "tokenizer.json")
    if model and re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, "tokenizer.json")
        if isinstance(found, str):
            return Vocabulary(Path(found))
    return Vocabulary(None)


def model_of(run: Path) -> str:
    """The model that a run names; empty where it names none."""
    model = settings_of(run).get("model")
    path = model.get("path") if isinstance(model, dict) else model
    return path if isinstance(path, str) else ""


def settings_of(run: Path) -> dict[str, Any]:
    """A run's recipe, or what makes an evaluation itself; empty where neither can be read."""
    for name in ("recipe.yaml", "evaluation.json"):
        with suppress(OSError, ValueError, yaml.YAMLError):
            found = yaml.safe_load((run / name).read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
    return {}
