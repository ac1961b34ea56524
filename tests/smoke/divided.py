"""What each of two processes does in tests/smoke/test_divided_runs.py: `sandbox-rl train`, its model divided.

`python -m tests.smoke.divided start CONFIG ARGUMENTS...` has accelerate's launcher start two of this module
with a configuration that is shipped, as `sandbox-rl train` does on two cards.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from tests import prepared


def shard_on_cpus() -> None:
    """accelerate divides a model by FSDP on cards only; here it takes these processes for some."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    begin = AcceleratorState.__init__

    def init(self: Any, *given: Any, fsdp_plugin: Any = None, **named: Any) -> None:
        begin(self, *given, fsdp_plugin=fsdp_plugin, **named)
        if fsdp_plugin is None or "fsdp_plugin" in self.__dict__:
            return
        for state in (PartialState._shared_state, AcceleratorState._shared_state):
            state["distributed_type"] = DistributedType.FSDP
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = init


if __name__ == "__main__":
    if sys.argv[1] == "start":
        prepared.for_launchers()
        from sandbox_rl.config.recipe import LaunchSettings
        from sandbox_rl.runs.launch import plan_launch, run_launch

        config, *arguments = sys.argv[2:]
        launch = plan_launch(LaunchSettings(config=config, processes=2), cards=2, training=2, environment={})
        assert launch is not None
        sys.exit(run_launch(launch, ["train", *arguments], module="tests.smoke.divided"))
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpus()
    from sandbox_rl.cli import main

    main(sys.argv[1:])
