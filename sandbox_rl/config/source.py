"""YAML with line numbers: which line of the recipe a value came from, and no key said twice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sandbox_rl.errors import ConfigError

__all__ = ["Place", "RecipeSource", "parse_yaml", "read_source"]

Place = tuple[str | int, ...]
"""Path of keys and list indices to a value."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-6 as text; everyone who types it means the number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """The plain value that `text` says.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return yaml.load(text, Loader=_Loader)  # a SafeLoader: plain values only


@dataclass(frozen=True, slots=True)
class RecipeSource:
    """Plain values and where they were said ("recipe.yaml:12" or "override a.b=1")."""

    values: dict[str, Any]
    places: Mapping[Place, str]

    def where(self, place: Place) -> str:
        """The nearest known place at or above `place`."""
        for end in range(len(place), -1, -1):
            if place[:end] in self.places:
                return self.places[place[:end]]
        return ""


def read_source(path: Path) -> RecipeSource:
    """Read a recipe file.

    Raises:
        ConfigError: not there, not YAML, not a mapping, or a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path}: cannot be read ({error}); give the path of a YAML file") from error
    try:
        node = yaml.compose(text, Loader=_Loader)
        values = parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{line}: not valid YAML: {problem}") from error
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        kind = type(values).__name__
        raise ConfigError(f"{path}: a recipe is a mapping of keys to values, got {kind}; see recipes/")
    places: dict[Place, str] = {(): str(path)}
    try:
        _note_places(path, node, (), places)
    except RecursionError as error:
        raise ConfigError(f"{path}: a value contains itself; write it out") from error
    return RecipeSource(values, places)


def _note_places(path: Path, node: yaml.Node, place: Place, places: dict[Place, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = key_node.value
            inner = (*place, key)
            here = f"{path}:{key_node.start_mark.line + 1}"
            if inner in places:
                raise ConfigError(f"{here}: key {key!r} is said twice, first at {places[inner]}; keep one")
            places[inner] = here
            _note_places(path, value_node, inner, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            places[(*place, index)] = f"{path}:{item.start_mark.line + 1}"
            _note_places(path, item, (*place, index), places)
