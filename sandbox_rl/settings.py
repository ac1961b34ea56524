"""The base of every configuration model: frozen, strict about keys, documented by its fields.

Each component defines its own model beside itself (`tasks/config.py`, `sandboxes/config.py`, …);
`sandbox_rl.config` composes them into a recipe.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Settings"]


class Settings(BaseModel):
    """A frozen configuration model that refuses unknown keys. A `type` field names the variant."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
