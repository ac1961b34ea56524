"""docs/recipe.md is what the settings say, and says something about each of them."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

from sandbox_rl.config.recipe import Recipe

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("make_reference", ROOT / "scripts" / "make_reference.py")
make_reference = importlib.util.module_from_spec(spec)


def test_the_reference_is_what_the_settings_say():
    sys.modules["make_reference"] = make_reference  # its dataclass looks itself up there
    spec.loader.exec_module(make_reference)
    assert make_reference.PATH.read_text(encoding="utf-8") == make_reference.page(), (
        "run python scripts/make_reference.py"
    )


def test_every_key_has_a_meaning():
    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", text, re.MULTILINE)
    assert len(rows) > 200
    assert [key for key, meaning in rows if not meaning.strip()] == []
    assert {key for key, _ in rows} >= set(Recipe.model_fields)
