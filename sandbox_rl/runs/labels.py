"""Words for model cards and tables."""

from __future__ import annotations

from collections.abc import Mapping

from sandbox_rl.config.recipe import Recipe

__all__ = ["data_labels", "result_lines"]


def data_labels(recipe: Recipe) -> list[str]:
    """What the data sources are called; of a file its name, not where it lies."""
    return [source.label for source in recipe.data.sources]


def result_lines(results: Mapping[str, str]) -> dict[str, str]:
    """Metric → value for a model card, from when → what was measured (`str` of an `Evaluation`)."""
    return {f"held-out accuracy {when} training": text for when, text in results.items()}
