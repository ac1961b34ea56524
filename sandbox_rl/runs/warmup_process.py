"""`python -m sandbox_rl.runs.warmup_process RECIPE BASE_DIR`: a warm-up outside a process group."""

from __future__ import annotations

import sys
from pathlib import Path

from sandbox_rl.config.load import load_recipe
from sandbox_rl.display import Silent
from sandbox_rl.environment_errors import environment_error
from sandbox_rl.errors import UserError
from sandbox_rl.runs.warmup import warmup


def main() -> int:
    """Exit code 2 and one line for a user's mistake."""
    try:
        warmup(load_recipe(Path(sys.argv[1]), []), base_dir=Path(sys.argv[2]), display=Silent())
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:
        if (said := environment_error(error)) is None:
            raise
        print(said, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
