"""The base of every configuration model: frozen, strict about keys, its fields explained below them.

Each component defines its own model beside itself (`tasks/config.py`, `sandboxes/config.py`, …);
`sandbox_rl.config` composes them into a recipe.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from sandbox_rl.errors import ConfigError
from sandbox_rl.registry import Registry


class Settings(BaseModel):
    """A frozen configuration model that refuses unknown keys. A `type` field names the variant."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Variant(Settings):
    """Settings of one of several kinds of a thing, which make that thing; distinguished by `type`."""

    type: str = ""
    """A short name, or `package.module:Class`; said by a recipe, known from the class in Python."""

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_class(cls, values: Any) -> Any:
        """One without a short name, made in Python, can be written into a recipe and read again."""
        if isinstance(values, Mapping) and "type" not in values and not cls.model_fields["type"].default:
            return {**values, "type": f"{_importable(cls.__module__)}:{cls.__qualname__}"}
        return values


def _importable(module: str) -> str:
    """The name by which other processes import a module; a program that runs is imported by its file's."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).stem if module == "__main__" and file else module


@dataclass(frozen=True, slots=True)
class ByType:
    """Marks a field whose value is a variant: `type` is looked up in a registry of settings models.

    `Annotated[Base, ByType(REGISTRY)]` takes a mapping whose `type` names a subclass of `Base`, or an
    instance of `Base`.

    Args:
        default: the type of a mapping that names none; None where it has to.
    """

    registry: Registry[Any]
    default: str | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate by the model that `type` names, serialise by the model that it is."""
        return core_schema.no_info_plain_validator_function(
            partial(self._validated, source), serialization=core_schema.simple_ser_schema("any")
        )

    def model(self, values: Any) -> type[Settings]:
        """The settings model of a mapping.

        Raises:
            ConfigError: it names none, or one that cannot be had.
        """
        kind = values.get("type", self.default) if isinstance(values, Mapping) else None
        if not isinstance(kind, str):
            raise ConfigError(f"expected one of {', '.join(map(repr, self.registry.names))}")
        found: type[Settings] = self.registry.find(kind)
        return found

    def _validated(self, base: Any, value: Any) -> Settings:
        if isinstance(value, base):
            return value  # type: ignore[no-any-return]
        if not isinstance(value, Mapping):
            raise ValueError("expected a mapping with `type`")
        named = "type" in value or self.default is not None
        try:
            model = self.model(value)
        except ConfigError as error:
            kind = PydanticCustomError(
                "variant" if named else "variant_missing", "{why}", {"why": str(error)}
            )
            details = InitErrorDetails(type=kind, loc=("type",), input=value.get("type"))
            raise ValidationError.from_exception_data(self.registry.kind, [details]) from error
        return model.model_validate(value)
