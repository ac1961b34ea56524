"""Write docs/recipe.md: every key of a recipe, from the settings themselves.

python scripts/make_reference.py           # write it
python scripts/make_reference.py --check   # exit code 1 if it is not what the settings say
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sandbox_rl.config.recipe import Recipe
from sandbox_rl.settings import ByType, Settings

PATH = Path(__file__).parents[1] / "docs" / "recipe.md"
HEAD = """# Every key of a recipe

Written by `python scripts/make_reference.py` from the settings themselves; a test holds it against them.
A recipe says only what differs from the defaults, `sandbox-rl train RECIPE --dry-run` prints the whole, and
any key can be given behind a recipe as `block.key=value`. The keys of `grpo` are the fields of
`trl.GRPOConfig`, in `mode: async` of `trl.experimental.async_grpo.AsyncGRPOConfig`.
"""


@dataclass(frozen=True, slots=True)
class Block:
    """Settings under a path of keys; `kind` is the `type` that chooses them."""

    path: str
    model: type[BaseModel]
    kind: str | None = None


def blocks(model: type[BaseModel], path: str = "", kind: str | None = None) -> Iterator[Block]:
    """A settings model and all below it, in the order of a recipe; each variant of a thing once."""
    yield Block(path, model, kind)
    for name, field in model.model_fields.items():
        below = f"{path}.{name}".lstrip(".")
        for inner, chosen in variants(field):
            yield from blocks(inner, below, chosen)


def variants(field: FieldInfo) -> Iterator[tuple[type[BaseModel], str | None]]:
    """Settings models that a field can have, each with its `type`."""
    for by in marks(field):
        for name in by.registry.names:
            found = by.registry.find(name)
            if inspect.isclass(found) and issubclass(found, BaseModel):
                yield found, name
        return
    for found in classes(field.annotation):
        yield found, None


def marks(field: FieldInfo) -> Iterator[ByType]:
    """What says by which registry the field's variants are found, wherever it stands."""
    yield from (m for m in field.metadata if isinstance(m, ByType))
    todo = [field.annotation]
    while todo:
        annotation = todo.pop()
        yield from (m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, ByType))
        todo += typing.get_args(annotation)


def classes(annotation: Any) -> Iterator[type[BaseModel]]:
    """Settings models in an annotation."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from classes(inner)


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Field → the text below it, of the class and those that it derives from."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, BaseModel) or cls in (BaseModel, Settings):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            said = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if said and isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def type_name(annotation: Any) -> str:
    """As a person writes it in YAML."""
    if annotation is None or annotation is type(None):
        return "null"
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " / ".join(f"`{value}`" for value in inner)
    if origin is typing.Annotated:
        return type_name(inner[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_name(one) for one in inner))
    if origin is not None and inspect.isclass(origin):
        if issubclass(origin, dict) or origin.__name__ == "Mapping":
            return f"mapping of {type_name(inner[1])}" if len(inner) == 2 else "mapping"
        return f"list of {type_name(inner[0])}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "block"
    names = {int: "integer", float: "number", str: "text", bool: "true / false", Path: "path"}
    return names.get(annotation, "value" if annotation is Any else getattr(annotation, "__name__", "value"))


def default_of(field: FieldInfo) -> str:
    """The default in YAML; empty for blocks, whose own keys have theirs."""
    if field.is_required():
        return "**required**"
    value = field.default_factory() if field.default_factory else field.default  # type: ignore[call-arg]
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    plain = value if isinstance(value, bool | int | float | str | None) else _plain(value)
    text = yaml.safe_dump(plain, default_flow_style=True, width=10_000, allow_unicode=True)
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def page() -> str:
    """The whole document."""
    lines = [HEAD]
    seen: set[tuple[str, type[BaseModel]]] = set()
    for block in blocks(Recipe):
        if (block.path, block.model) in seen:
            continue
        seen.add((block.path, block.model))
        title = f"`{block.path}`" if block.path else "The recipe itself"
        lines.append(f"## {title}{f', type `{block.kind}`' if block.kind else ''}\n")
        if doc := inspect.getdoc(block.model):
            lines.append(" ".join(doc.split("\n\n")[0].split()) + "\n")
        lines += ["| Key | Type | Default | Meaning |", "|---|---|---|---|"]
        texts = meanings(block.model)
        for name, field in block.model.model_fields.items():
            if name == "type" and block.kind:
                continue
            cells = [f"`{name}`", type_name(field.annotation), default_of(field), texts.get(name, "")]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Write the page, or compare it."""
    text = page()
    if "--check" in sys.argv[1:]:
        if PATH.read_text(encoding="utf-8") != text:
            raise SystemExit(
                f"{PATH.name} is not what the settings say; run python scripts/make_reference.py"
            )
        return
    PATH.write_text(text, encoding="utf-8")
    print(f"wrote {PATH}, {text.count(chr(10))} lines")


if __name__ == "__main__":
    main()
