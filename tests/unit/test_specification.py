"""The tests and files that SPECIFICATION.md and the other pages name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FILES = {
    str(path.relative_to(ROOT))
    for folder in ("tests", "sandbox_rl", "scripts", "examples")
    for path in (ROOT / folder).rglob("*.py")
}
TESTS = {
    name
    for path in sorted((ROOT / "tests").rglob("*.py"))
    for name in re.findall(r"def (test_\w+)", path.read_text())
}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_test_and_file_that_a_page_names_is_there(page):
    """A name may be cut with `…`."""
    text = page.read_text()
    named = re.findall(r"\b(test_\w+)(\.py|…)?", text)
    missing = {name for name, end in named if end == "…" and not any(test.startswith(name) for test in TESTS)}
    missing |= {name for name, end in named if not end and name not in TESTS}
    paths = {*re.findall(r"`([\w/]+/\w+\.py)\b", text), *(name + end for name, end in named if end == ".py")}
    missing |= {path for path in paths if not any(f"/{file}".endswith(f"/{path}") for file in FILES)}
    for path, name in re.findall(r"([\w/]+\.py)::(test_\w+)", text):
        found = [ROOT / file for file in FILES if f"/{file}".endswith(f"/{path}")]
        if not any(f"def {name}" in file.read_text() for file in found):
            missing.add(f"{path}::{name}")
    assert not missing
