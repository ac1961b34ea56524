"""Puts the repository's own pages (README.md …) and the files that pages link to on the site.

`mkdocs.yml` names this file. Links are written as they work in the repository; here they are rewritten for
the site, where README.md is the first page and what is in docs/ lies at the top.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "SPECIFICATION.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "recipes/llm-in-sandbox/README.md",
)
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the repository's own pages, and every file outside docs/ that a page links to."""
    for name in PAGES:
        files.append(File.generated(config, placed(name), abs_src_path=str(ROOT / name)))
    for page in list(files.documentation_pages()):
        text = Path(page.abs_src_path or "").read_text(encoding="utf-8")
        for _, target, _ in LINK.findall(text):
            name = named(origin(page.src_uri), target)
            if (ROOT / name).is_file() and files.get_file_from_path(placed(name)) is None:
                files.append(File.generated(config, placed(name), abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page to where the files are on the site."""
    del config, files
    here = page.file.src_uri

    def moved(link: re.Match[str]) -> str:
        name = named(origin(here), link[2])
        if not (ROOT / name).is_file():
            return link[0]  # mkdocs says that it leads nowhere
        return link[1] + posixpath.relpath(placed(name), posixpath.dirname(here) or ".") + link[3]

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in parts)


def placed(name: str) -> str:
    """The place on the site of a file of the repository."""
    return "index.md" if name == "README.md" else name.removeprefix("docs/")


def origin(place: str) -> str:
    """The file of the repository that a page of the site is made of."""
    own = {placed(name): name for name in PAGES}
    return own.get(place, f"docs/{place}")


def named(page: str, target: str) -> str:
    """The file of the repository that a link of a page leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
