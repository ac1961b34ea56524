"""The documentation as a site: no warnings, every page is there, and nothing of it comes from other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if not os.environ.get("CI"):
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")

LOADED = {
    ("script", "src"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("object", "data"),
    ("form", "action"),
}
"""What a browser fetches without being asked, by element and attribute; of <link> by its `rel`."""
OTHER_HOST = re.compile(r"(?:https?:)?//", re.IGNORECASE)


class _Fetched(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [value or "" for name, value in attrs if (tag, name) in LOADED]
        if tag == "link" and not {"canonical", "prev", "next"} & set((given.get("rel") or "").split()):
            self.addresses.append(given.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    place = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(place)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"a page that is not in the nav of mkdocs.yml? {done.stdout}{done.stderr}"
    assert "WARNING" not in done.stderr
    return place


def test_every_page_of_the_repository_is_on_the_site(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "SPECIFICATION", "CONTRIBUTING"}
    assert pages <= {path.stem for path in site.glob("*.html")}
    assert "docs/" not in re.findall(r'href="([^"#:]+)"', (site / "index.html").read_text())


def test_the_site_fetches_nothing_from_other_hosts(site):
    for path in site.rglob("*.html"):
        parser = _Fetched()
        parser.feed(path.read_text(encoding="utf-8"))
        assert parser.addresses, path
        assert [a for a in parser.addresses if OTHER_HOST.match(a)] == [], path
        # The theme fetches a renderer for these from elsewhere.
        assert 'class="mermaid"' not in path.read_text(encoding="utf-8"), path
    for path in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import\s*)[\"']?(?:https?:)?//", path.read_text()), path
