"""False alarms of the audits: healthy steps of many kinds of training, in both modes, and their alarms.

A tiny model is trained on made-up episodes whose log-probs are its own: every loss, with adapters, several
micro-batches and generations an update, masked, faulty and cut episodes, refilled groups; and asynchronously,
with old tokens. Nothing is wrong in any of it, so every alarm is a false one.

    python scripts/check_audits.py [--steps 15] [--async-steps 35]

Prints a line for each kind and the sums; exit code 1 if an alarm was raised.
"""

from __future__ import annotations

import argparse
import logging
import queue
import random
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, PrinterCallback
from transformers.utils.logging import disable_progress_bar
from trl import GRPOConfig

from sandbox_rl.audit.alarms import AlarmName
from sandbox_rl.audit.run import RunAudit
from sandbox_rl.policies.base import WeightVersion
from sandbox_rl.rollout.occupancy import Occupancy
from sandbox_rl.rollout.over_sampling import OverSampling
from sandbox_rl.rollout.slots import FirstGroups
from sandbox_rl.training.asynchronous.config import async_config
from sandbox_rl.training.asynchronous.progress import GroupProgress
from sandbox_rl.training.asynchronous.trainer import SandboxAsyncTrainer
from sandbox_rl.training.config import CurriculumSettings
from sandbox_rl.training.curriculum import Curriculum
from sandbox_rl.training.estimator import Estimator, advantage_rule, estimator_fields
from sandbox_rl.training.group_rollouts import GroupRollouts, outcome_reward
from sandbox_rl.training.groups import Advantage, advantages
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.probe import plain_forward
from sandbox_rl.training.publication.base import UnsentWeights
from sandbox_rl.training.samples import FinishedGroup, finished_group
from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from sandbox_rl.types import Action, Answer, AnswerStatus, Reward, Rollout, StopReason, Task, Trajectory, Turn

TOKENIZER = tiny_tokenizer()
GROUP = 4
TASKS = {f"t{i}": Task(id=f"t{i}", prompt="?", answer="1") for i in range(40)}

SYNC: dict[str, dict[str, Any]] = {
    "paper's estimator": {"estimator": "paper"},
    "paper, faults and masked rows": {"estimator": "paper", "lost": 15, "masked": 15},
    "grpo, adapters": {"loss_type": "grpo", "lora": True},
    "dapo, two micro-batches": {"loss_type": "dapo", "gradient_accumulation_steps": 2},
    "dapo, two generations an update": {"gradient_accumulation_steps": 2, "steps_per_generation": 1},
    "dr_grpo, unscaled, a generation twice": {
        "loss_type": "dr_grpo",
        "scale_rewards": "none",
        "num_iterations": 2,
    },
    "bnpo, scaled by batch, masked rows": {"loss_type": "bnpo", "scale_rewards": "batch", "masked": 20},
    "cispo, adapters, faults": {"loss_type": "cispo", "lora": True, "lost": 10, "epsilon_high": 5.0},
    "sapo": {"loss_type": "sapo"},
    "sequence ratios": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "grpo with KL": {"beta": 0.05},
    "truncated rows masked": {"mask_truncated_completions": True, "masked": 10},
    "over-sampling, faults": {"over_sample": 0.5, "lost": 5},
    "refilled groups": {"refill": True, "masked": 10},
    "parts of micro-batches": {"loss_type": "bnpo", "micro_batch_tokens": 80},
}
ASYNC: dict[str, dict[str, Any]] = {
    "on-policy": {"max_staleness": 0},
    "old tokens": {"max_staleness": 4, "at_once": 4},
    "adapters": {"lora": True},
    "group-normalised": {"kind": "grpo"},
    "faults and masked rows": {"lost": 10, "masked": 15},
    "large updates in small rows": {"gradient_accumulation_steps": 3, "token_budget": 90},
}


PLAIN: dict[str, Any] = {
    **{"learning_rate": 1e-4, "bf16": False, "use_cpu": True, "report_to": "none", "logging_steps": 1},
    **{"save_strategy": "no", "disable_tqdm": True, "remove_unused_columns": False},
}
"""Of every synchronous run."""


class Episodes:
    """Stands where the rollout engine stands: random tokens with the log-probs of the model as it is.

    Args:
        lost, masked: of a hundred episodes those that are not judged, and that the recipe masks.
    """

    def __init__(self, *, lost: int = 0, masked: int = 0, seed: int = 0) -> None:
        self.model: Any = None
        self.version = 0
        self.occupancy = Occupancy()
        self._draw = random.Random(seed)
        self._lost, self._masked = lost, masked

    async def run(self, requests: Any, observer: Any = None) -> list[Rollout]:
        return [self.one(request.id, request.task) for request in requests]

    async def run_groups(self, groups: Any, *, keep: int, observer: Any = None) -> FirstGroups:
        made = [await self.run(group) for group in groups]
        kept = sorted(self._draw.sample(range(len(made)), keep))
        cut = [rollout for place, group in enumerate(made) if place not in kept for rollout in group[:2]]
        return FirstGroups({place: made[place] for place in kept}, dict.fromkeys(kept, 1.0), cut, 1.0)

    def one(self, name: str, task: Task) -> Rollout:
        turns = []
        for left in reversed(range(self._draw.randint(1, 3))):
            sampled = (*self._ids(self._draw.randint(1, 8)), TOKENIZER.eos_token_id)
            action = Action(sampled, None, "stop", weight_version=self.version)
            turns.append(Turn(action, observation_ids=self._ids(4) if left else ()))
        luck, reward = self._draw.randrange(100), Reward(self._draw.choice((0.0, 0.0, 1.0, 0.5)))
        stop = StopReason.SUBMITTED
        if luck < self._lost:
            reward, stop = Reward(None), StopReason.INFRA_FAULT
        elif luck < self._lost + self._masked:
            reward, stop = Reward(None, masked=True), StopReason.MAX_TOKENS
        trajectory = Trajectory(
            task.id,
            tuple(random.Random(task.id).randrange(10, 200) for _ in range(6)),
            tuple(turns),
            stop,
            Answer(AnswerStatus.OK, "1"),
            episode_id=name,
        )
        return Rollout(self._scored(trajectory), reward, task)

    def _ids(self, count: int) -> tuple[int, ...]:
        return tuple(self._draw.randrange(10, 200) for _ in range(count))

    def _scored(self, trajectory: Trajectory) -> Trajectory:
        ids = torch.tensor([[*trajectory.prompt_ids, *trajectory.completion_ids]])
        with plain_forward(self.model):
            scores = self.model(input_ids=ids).logits[0].float().log_softmax(-1)
        chosen = scores[:-1].gather(-1, ids[0, 1:, None]).squeeze(-1).tolist()
        at, turns = len(trajectory.prompt_ids) - 1, []
        for turn in trajectory.turns:
            count = len(turn.action.token_ids)
            turns.append(replace(turn, action=replace(turn.action, logprobs=tuple(chosen[at : at + count]))))
            at += count + len(turn.observation_ids)
        return replace(trajectory, turns=tuple(turns))


class Worker:
    """Stands where the rollout process stands: a group is there as soon as it is admitted."""

    def __init__(self, episodes: Episodes, kind: Advantage, version: WeightVersion) -> None:
        self.rollout_buffer: queue.Queue[FinishedGroup] = queue.Queue()
        self.metrics_queue: queue.Queue[dict[str, float]] = queue.Queue()
        self._episodes, self._kind, self._version = episodes, kind, version

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def check_health(self, stale_after_s: float) -> None: ...

    def admit(self, numbers: Sequence[int]) -> None:
        self._episodes.version = self._version.value
        for number in numbers:
            task = TASKS[f"t{number % len(TASKS)}"]
            group = [self._episodes.one(f"{number}-{i}", task) for i in range(GROUP)]
            self.rollout_buffer.put(finished_group(group, number=number, kind=self._kind))


def saved_model(directory: Path) -> str:
    """Where the model lies that a run begins with, and a KL term compares with."""
    tiny_model(TOKENIZER).save_pretrained(directory / "model")
    return str(directory / "model")


def adapters(wanted: bool) -> LoraConfig | None:
    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if wanted else None


def sync_alarms(directory: Path, steps: int, kind: dict[str, Any]) -> list[str]:
    """The alarms of a synchronous run."""
    fields = dict(kind)
    estimator: Estimator = fields.pop("estimator", "trl")
    episodes = Episodes(lost=fields.pop("lost", 0), masked=fields.pop("masked", 0))
    lora, refill = adapters(fields.pop("lora", False)), fields.pop("refill", False)
    over_sample, parts = fields.pop("over_sample", 0.0), fields.pop("micro_batch_tokens", None)
    sizes = {"per_device_train_batch_size": 2 * GROUP, "num_generations": GROUP, "max_steps": steps}
    args = GRPOConfig(str(directory), **(PLAIN | sizes | estimator_fields(estimator) | fields))
    audit = RunAudit.start(
        masks_truncated=args.mask_truncated_completions, advantages=advantage_rule(estimator, args)
    )
    make: Any = GroupRollouts
    if over_sample:
        make = partial(GroupRollouts, over_sampling=OverSampling(over_sample))
    elif refill:
        drawer = Curriculum(dict.fromkeys(TASKS, ""), CurriculumSettings(refill_rounds=1), seed=0)
        make = partial(GroupRollouts, curriculum=drawer)
    given = {"estimator": estimator, "seed": 0, "eos_id": TOKENIZER.eos_token_id, "audit": audit.samples}
    with LoopThread() as loop:
        trainer = SandboxGRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(saved_model(directory), dtype=torch.float32),
            args=args,
            train_dataset=Dataset.from_dict({"prompt": ["t0"] * 8 * steps}),
            processing_class=TOKENIZER,
            reward_funcs=outcome_reward,
            rollout_func=make(episodes, loop, TASKS, **given),
            peft_config=lora,
            micro_batch_tokens=parts,
            audit=audit,
        )
        episodes.model = trainer.model
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    assert trainer.state.global_step == steps
    return false_alarms(audit, kind)


def async_alarms(directory: Path, steps: int, kind: dict[str, Any]) -> list[str]:
    """The alarms of an asynchronous run."""
    fields = dict(kind)
    rule: Advantage = fields.pop("kind", "rloo")
    episodes = Episodes(lost=fields.pop("lost", 0), masked=fields.pop("masked", 0))
    lora, at_once = adapters(fields.pop("lora", False)), fields.pop("at_once", 2)
    audit = RunAudit.start(advantages=partial(advantages, kind=rule), group_size=GROUP)
    weights = UnsentWeights()
    block = {"max_steps": steps, "num_generations": GROUP, "token_budget": 200, "learning_rate": 1e-4}
    trainer = SandboxAsyncTrainer(
        model=saved_model(directory),
        args=async_config(
            block | {"save_strategy": "no"} | fields,
            **{"checkpoints": directory / "run", "name": "x", "seed": 0, "max_tokens": 60, "longest": 60},
            dtype=torch.float32,
        ),
        at_once=at_once,
        progress=GroupProgress(),
        train_dataset=Dataset.from_dict({"prompt": ["t0"]}),
        processing_class=TOKENIZER,
        rollout_worker=Worker(episodes, rule, weights.version),
        weights=weights,
        peft_config=lora,
        audit=audit,
    )
    episodes.model = trainer.model
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert trainer.state.global_step == steps
    return false_alarms(audit, kind)


def false_alarms(audit: RunAudit, kind: dict[str, Any]) -> list[str]:
    """What was said of healthy steps; that many episodes are lost is true where they are."""
    true = {AlarmName.INFRA_FAULTS} if kind.get("lost") else set()
    alarms = [alarm for alarm in audit.alarms.raised if alarm.name not in true]
    return [f"step {alarm.step}: {alarm.name.value}: {alarm.detail}" for alarm in alarms]


def main() -> int:
    """Exit code 1 for a false alarm."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=15, help="of each synchronous kind")
    parser.add_argument("--async-steps", type=int, default=35, help="of each asynchronous kind")
    options = parser.parse_args()
    for noisy in ("sandbox_rl", "trl", "transformers"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    disable_progress_bar()
    warnings.simplefilter("ignore")
    raised = 0
    for mode, kinds, steps, alarms_of in (
        ("sync", SYNC, options.steps, sync_alarms),
        ("async", ASYNC, options.async_steps, async_alarms),
    ):
        of_mode = 0
        for name, kind in kinds.items():
            with tempfile.TemporaryDirectory() as directory:
                alarms = alarms_of(Path(directory), steps, kind)
            of_mode += len(alarms)
            print(f"{mode:5} {name:40} {steps:4} steps, {len(alarms)} alarms", flush=True)
            for line in alarms[:3]:
                print(f"      {line}")
        print(f"{mode}: {steps * len(kinds)} healthy steps, {of_mode} false alarms")
        raised += of_mode
    return int(raised > 0)


if __name__ == "__main__":
    sys.exit(main())
