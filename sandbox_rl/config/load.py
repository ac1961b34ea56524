"""From a YAML file and overrides to validated settings, or one line that says what is wrong."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from sandbox_rl.config.recipe import Recipe
from sandbox_rl.errors import ConfigError
from sandbox_rl.registry import look_beside
from sandbox_rl.settings import ByType

S = TypeVar("S", bound=BaseModel)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; its relative paths are relative to its own directory.

    Raises:
        ConfigError: as `load_settings`.
    """
    return anchored(load_settings(Recipe, path, overrides), path.resolve().parent)


def load_settings(model: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """Read settings and apply overrides such as `grpo.learning_rate=1e-6` or `data.sources.0.size=50`.

    What they name by an import path may lie in the folders of the key `modules`, by default beside the file.

    Raises:
        ConfigError: one line naming file and line (or the override), key, value and what was expected.
    """
    validated: S = _validated(model, read_source(path), overrides, path.parent)
    return validated


def load_block(block: Any, values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Any:
    """A block of a recipe from the command line alone, such as `SandboxSettings`; keys are those below it.

    Raises:
        ConfigError: as `load_settings`, naming the override.
    """
    return _validated(block, RecipeSource(dict(values), {}), overrides, Path())


def _validated(block: Any, source: RecipeSource, overrides: Sequence[str], folder: Path) -> Any:
    values = copy.deepcopy(source.values)
    places = dict(source.places)
    for override in overrides:
        place = _apply(values, override)
        for known in [p for p in places if p[: len(place)] == place]:
            del places[known]
        for end in range(1, len(place) + 1):
            places.setdefault(place[:end], f"override {override!r}")
    merged = RecipeSource(values, places)
    modules = values.get("modules")  # before it is validated: the other keys need it
    for directory in modules if isinstance(modules, list) else ["."]:
        look_beside(folder / str(directory))
    try:
        return TypeAdapter(block).validate_python(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        # A list whose item is wrong is reported as a wrong list, too: keep the deepest.
        details = [e for e in found if not any(_inside(other["loc"], e["loc"]) for other in found)]
        first, *others = _of_keys(details, values)
        message = _explain(block, merged, first)
        if others:
            message += f" (and {len(others)} more)"
        raise ConfigError(message) from error


def anchored(recipe: Recipe, base_dir: Path) -> Recipe:
    """The recipe with paths relative to `base_dir` made absolute, so that it means the same anywhere."""
    sources = tuple(source.anchored(base_dir) for source in recipe.data.sources)
    schedule = recipe.evaluation.suite
    if schedule is not None and (base_dir / schedule.path).is_file():  # else the name of a shipped one
        schedule = schedule.model_copy(update={"path": str(base_dir / schedule.path)})
    return recipe.model_copy(
        update={
            "prompts": tuple(str(base_dir / directory) for directory in recipe.prompts),
            "modules": tuple(str(base_dir / directory) for directory in recipe.modules),
            "evaluation": recipe.evaluation.model_copy(update={"suite": schedule}),
            "data": recipe.data.model_copy(update={"sources": sources}),
        }
    )


def _apply(values: dict[str, Any], override: str) -> Place:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted.strip():
        raise ConfigError(f"override {override!r}: expected key=value, e.g. grpo.learning_rate=1e-6")
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value; quote it") from error
    keys = dotted.strip().split(".")
    place: list[str | int] = []
    target: Any = values
    for position, key in enumerate(keys):
        last = position + 1 == len(keys)
        if isinstance(target, list):
            if not key.isdecimal() or int(key) >= len(target):
                raise ConfigError(
                    f"override {override!r}: {'.'.join(keys[:position])} is a list of {len(target)}, "
                    f"expected an index from 0 to {len(target) - 1} instead of {key!r}"
                )
            index: str | int = int(key)
        elif isinstance(target, dict):
            index = key
            if not last and not isinstance(target.get(key), dict | list):
                target[key] = {}
        else:
            raise ConfigError(f"override {override!r}: {'.'.join(keys[:position])} has no keys below it")
        place.append(index)
        if last:
            target[index] = value
        else:
            target = target[index]
    return tuple(place)


def _explain(root: Any, source: RecipeSource, detail: ErrorDetails) -> str:
    place = detail["loc"]
    key = ".".join(str(part) for part in place)
    where = source.where(place)
    prefix = f"{where}: " if where else ""
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        name = str(place[-1])
        holder = _holder(root, place, source.values)
        known = list(_fields(holder)) if holder is not None else []
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(known))}"
        return f"{prefix}unknown key {key!r}, {hint}"
    if detail["type"] == "missing":
        return f"{prefix}key {key!r} is missing; add it"
    problem = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "variant_missing":
        return f"{prefix}key {key!r} is missing; add it, {problem.removeprefix('expected ')}"
    if detail["type"] == "variant":
        return f"{prefix}key {key!r}: {problem}"
    problem = problem[0].lower() + problem[1:]
    return f"{prefix}key {key!r}: {_short(detail['input'])}, {problem}"


def _of_keys(details: Sequence[ErrorDetails], values: Any) -> list[ErrorDetails]:
    """One for each key: what has several forms, as a number or `auto`, is reported once for each of them, and
    below the key by the form's name in pydantic."""
    found: dict[tuple[Place, str], ErrorDetails] = {}
    for detail in details:
        place, inner = detail["loc"], values
        for depth, part in enumerate(place):
            if not isinstance(inner, dict | list):
                place = place[:depth]
                break
            known = part in inner if isinstance(inner, dict) else isinstance(part, int) and part < len(inner)
            inner = inner[part] if known else {}  # type: ignore[index]
        form = "" if len(place) < len(detail["loc"]) else str(detail["loc"])
        if (before := found.get((place, form))) is None:
            found[place, form] = ErrorDetails(**{**detail, "loc": place})
        else:
            said = detail["msg"].removeprefix("Input should be ")
            found[place, form] = ErrorDetails(**{**before, "msg": f"{before['msg']}, or {said}"})
    return list(found.values())


def _inside(inner: Place, outer: Place) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _holder(root: Any, place: Place, values: Any) -> type | None:
    """The settings model that should have known the last key of `place`."""
    model, annotation = next(iter(_models(root, values)), None), root
    for part in place[:-1]:
        values = values[part]
        if isinstance(part, str):
            annotation = _fields(model).get(part) if model is not None else None
        model = next(iter(_models(annotation, values)), model)
    return model


def _fields(model: type) -> Mapping[str, Any]:
    """Field name → annotation of a settings model or of a dataclass within one."""
    if not issubclass(model, BaseModel):
        return get_type_hints(model)
    # A field keeps what its annotation was marked with elsewhere.
    return {
        name: Annotated[field.annotation, *field.metadata, None] for name, field in model.model_fields.items()
    }


def _models(annotation: Any, value: Any) -> list[type]:
    """The settings models and dataclasses that a value of this annotation can belong to."""
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, ByType):
            return [mark.model(value)] if isinstance(value, Mapping) else []
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument, value)]


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
                raise ConfigError(f"{here}: key {key!r} is given twice, first at {places[inner]}; keep one")
            places[inner] = here
            _note_places(path, value_node, inner, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            places[(*place, index)] = f"{path}:{item.start_mark.line + 1}"
            _note_places(path, item, (*place, index), places)
