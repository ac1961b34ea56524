"""The page itself: plain ES modules, a style sheet, and the chart library uPlot with its licence."""

from __future__ import annotations

from importlib.resources import files

__all__ = ["FILES", "MODULES", "read_page"]

MODULES = (
    "text.js",
    "dom.js",
    "data.js",
    "charts.js",
    "run.js",
    "episodes.js",
    "episode.js",
    "others.js",
    "app.js",
)
"""In an order in which each imports only what stands before it."""
FILES = {
    "index.html": "text/html",
    "style.css": "text/css",
    "uplot.css": "text/css",
    "uplot.js": "text/javascript",
    **dict.fromkeys(MODULES, "text/javascript"),
}
"""Name → media type."""


def read_page(name: str) -> bytes:
    """One of the files."""
    return files(__name__).joinpath(name).read_bytes()
