"""Everything a training run stands on, put together from its plan and taken down again."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from accelerate import PartialState

import sandbox_rl
from sandbox_rl.agents.tokens import TokenAgent
from sandbox_rl.audit.faults import FaultWatch
from sandbox_rl.builders import build_backend, build_engine
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.display import Display
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.lease import ModelLease
from sandbox_rl.policies.vllm.launch import check_startable
from sandbox_rl.preflight.rewards import check_rewards
from sandbox_rl.rollout.engine import RolloutEngine
from sandbox_rl.runs.division import check_checkpoint, check_division, division_here
from sandbox_rl.runs.placement import training_placement
from sandbox_rl.runs.plan import RunModel, RunPlan
from sandbox_rl.runs.policy import RunPolicy, run_policy
from sandbox_rl.runs.records import Records, open_records
from sandbox_rl.runs.starting_point import starting_point
from sandbox_rl.runs.status import RunStatus
from sandbox_rl.sandboxes.base import SandboxInfo
from sandbox_rl.training.agreement import together
from sandbox_rl.training.config import MetricsSettings
from sandbox_rl.training.grpo import sampling_of
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.prometheus import PrometheusEndpoint, prometheus_endpoint
from sandbox_rl.training.stopping import FinishOnSignal, Owner


@dataclass(frozen=True, slots=True)
class Session:
    """What both ways of training use.

    Args:
        model: that training starts from.
        policy: what samples, with the loaded weights.
        loop, engine: where episodes run.
        finish: a callback that the trainer must get.
        faults: is told of every episode of this process.
        endpoint: a callback that the trainer must get, where the recipe asks for it.
        status: another callback for the trainer; on the main process of a run that others may look at.
    """

    plan: RunPlan
    state: PartialState
    display: Display
    model: RunModel
    policy: RunPolicy
    loop: LoopThread
    engine: RolloutEngine
    records: Records
    finish: FinishOnSignal
    faults: FaultWatch
    endpoint: PrometheusEndpoint | None = None
    status: RunStatus | None = None


@contextmanager
def training_session(
    plan: RunPlan, *, state: PartialState, display: Display, owner: Owner | None = None
) -> Iterator[Session]:
    """Start sandboxes, scorers, policy and server, and open the run's directory.

    Raises:
        UserError: something in the recipe, the data, the model or the machine.
        EndedNow: Ctrl-C came twice.
    """
    recipe = plan.recipe
    with together():
        check_division(recipe, division_here())
        check_checkpoint(plan.checkpoint, division_here())
    with together():  # an endpoint can be out of reach of one process
        notes = asyncio.run(check_rewards(recipe, plan.base_dir, plan.train_tasks))
    for note in (*notes, *_of_chaos(recipe)):
        display.say(note)
    if recipe.warmup is not None and isinstance(recipe.policy, VLLMSettings):
        # What cannot be started or placed is refused before a warm-up takes its minutes.
        with together():
            check_startable(recipe.policy)
            training_placement(recipe, plan.args, RunModel.of(plan, recipe.model))
    settings = starting_point(recipe, base_dir=plan.base_dir, state=state, display=display)
    model = RunModel.of(plan, settings)
    with together():
        placement = training_placement(recipe, plan.args, model)
    finish, faults, lease = FinishOnSignal(), FaultWatch(recipe.reward.max_fault_share), ModelLease()
    with ExitStack() as stack:
        stack.callback(finish.remove)  # last: a second signal must not cut what is taken down
        loop = stack.enter_context(LoopThread(lease))
        policy = stack.enter_context(
            run_policy(recipe, model, placement, loop=loop, lease=lease, display=display)
        )
        backend = build_backend(recipe)
        engine = build_engine(
            recipe,
            base_dir=plan.base_dir,
            agent=TokenAgent(policy.policy, model.chat),
            sampling=sampling_of(plan.args),
            backend=backend,
            chaos=recipe.chaos,
        )
        stack.enter_context(loop.entered(engine))
        records = stack.enter_context(open_records(plan, state))
        if policy.served is not None:
            policy.served.keep_log(records.run.path / "vllm.log")
        with together():
            asked = recipe.metrics if state.is_main_process else MetricsSettings()
            endpoint = stack.enter_context(prometheus_endpoint(asked, records.run.path.name))
        finish.install(loop.give_up, run=records.run.path, owner=owner)
        status = None
        if state.is_main_process:
            status = stack.enter_context(RunStatus(records.run.path, engine.occupancy, policy.policy))
            records.run.write_json("machine.json", machine_facts(backend.info))
            # The journal holds ids; whoever looks at a run before its first checkpoint needs the words.
            model.tokenizer.save_pretrained(records.run.path / "tokenizer")
        yield Session(
            plan, state, display, model, policy, loop, engine, records, finish, faults, endpoint, status
        )


def _of_chaos(recipe: Recipe) -> Iterator[str]:
    if recipe.chaos.share:
        yield (
            f"chaos: faults are injected into {recipe.chaos.share:.0%} of the episodes' tries (seed "
            f"{recipe.chaos.seed}): sandboxes killed or hanging, servers that hang up, scorers lost"
        )


_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "vllm", "docker", "reasoning-gym")


def machine_facts(sandbox: SandboxInfo) -> dict[str, Any]:
    """Versions, devices and the sandbox, as JSON values."""
    versions: dict[str, str] = {"sandbox_rl": sandbox_rl.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": versions,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "sandbox": asdict(sandbox),
    }
