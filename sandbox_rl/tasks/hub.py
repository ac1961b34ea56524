"""Data sets of the Hugging Face Hub."""

from __future__ import annotations

from sandbox_rl.errors import DataError
from sandbox_rl.tasks.config import HubSource
from sandbox_rl.tasks.rows import HubRows, Rows

__all__ = ["open_hub"]


def open_hub(source: HubSource) -> Rows:
    """Download the data set or take it from the cache.

    Raises:
        DataError: it is neither to be had nor cached, or has no such configuration or split.
    """
    # A second of import that only Hub sources pay for.
    import datasets

    try:
        dataset = datasets.load_dataset(
            source.dataset, source.config, split=source.split, revision=source.revision
        )
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # includes every "not found" and "offline" of datasets
        reason = " ".join(str(error).split())[:300]
        config = f", config {source.config!r}" if source.config else ""
        raise DataError(
            f"data: Hub data set {source.dataset!r}{config}, split {source.split!r} cannot be loaded "
            f"({type(error).__name__}: {reason}); check its names, or on a machine with network run "
            f"`hf download --repo-type dataset {source.dataset} --local-dir DIR` and use a source of "
            "type: table with path: DIR/….parquet"
        ) from error
    return HubRows(dataset, source.name or source.dataset)
