"""`python -m sandbox_rl.train RECIPE [KEY=VALUE]... [--resume]`, for `accelerate launch` and `torchrun`."""

from __future__ import annotations

import sys

from sandbox_rl.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
