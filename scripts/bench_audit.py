"""What the audits cost: seconds inside of them as a share of the updates that they look at.

A model of some million parameters is trained by GRPO on made-up episodes with all audits on. Sampling is
not part of it: with real episodes a step is longer and the share smaller. Fails over a share of 1 %, or
when an alarm was sounded, for nothing is wrong here.

    python scripts/bench_audit.py [--steps 12] [--tokens 256] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, Qwen3ForCausalLM
from trl import GRPOConfig

from sandbox_rl.audit.run import RunAudit
from sandbox_rl.rollout.occupancy import Occupancy
from sandbox_rl.training.group_rollouts import GroupRollouts, outcome_reward
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.tiny import tiny_config, tiny_tokenizer
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from sandbox_rl.types import Action, Answer, AnswerStatus, Reward, Rollout, StopReason, Task, Trajectory, Turn

REQUIRED_SHARE = 0.01
ROWS = 16
GROUP = 8


class Episodes:
    """Stands where the rollout engine stands: random tokens with the log-probs of the model."""

    def __init__(self, model: PreTrainedModel, tokens: int) -> None:
        self._model = model
        self._tokens = tokens
        self._random = random.Random(0)
        self.occupancy = Occupancy()

    async def run(self, requests: Any, observer: Any = None) -> list[Rollout]:
        return [self._one(request.id, request.task) for request in requests]

    def _one(self, name: str, task: Task) -> Rollout:
        draw = self._random
        turns = tuple(
            Turn(
                Action(tuple(draw.randrange(10, 200) for _ in range(self._tokens // 4)), None, "stop"),
                observation_ids=tuple(
                    draw.randrange(10, 200) for _ in range(self._tokens // 8 if last else 0)
                ),
            )
            for last in (True, True, False)
        )
        prompt = tuple(draw.randrange(10, 200) for _ in range(32))
        trajectory = Trajectory(
            task.id, prompt, turns, StopReason.SUBMITTED, Answer(AnswerStatus.OK, "1"), episode_id=name
        )
        ids = torch.tensor([[*prompt, *trajectory.completion_ids]])
        with torch.no_grad():
            scores = self._model(input_ids=ids).logits[0].float().log_softmax(-1)
        chosen = scores[:-1].gather(-1, ids[0, 1:, None]).squeeze(-1).tolist()
        at, made = len(prompt) - 1, []
        for turn in turns:
            count = len(turn.action.token_ids)
            made.append(replace(turn, action=replace(turn.action, logprobs=tuple(chosen[at : at + count]))))
            at += count + len(turn.observation_ids)
        reward = Reward(float(draw.random() < 0.5))
        return Rollout(replace(trajectory, turns=tuple(made)), reward, task)


class Clock:
    """Adds up the seconds inside of functions."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def around(self, owner: Any, name: str, label: str) -> None:
        """Time a method from now on."""
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                spent = time.perf_counter() - started
                self.seconds[label] = self.seconds.get(label, 0.0) + spent

        setattr(owner, name, timed)


def small_model(tokenizer: Any) -> Qwen3ForCausalLM:
    """Of six layers, with weights of seed 0."""
    config = tiny_config(tokenizer)
    config.hidden_size, config.num_hidden_layers, config.intermediate_size = 384, 6, 1024
    config.layer_types = None if config.layer_types is None else ["full_attention"] * 6
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config)


def measure(steps: int, tokens: int, directory: Path) -> dict[str, Any]:
    """Train `steps` updates; seconds of them all, and of each audit."""
    tokenizer = tiny_tokenizer()
    model = small_model(tokenizer)
    audit, clock = RunAudit.start(), Clock()
    task = Task(id="a", prompt="?", answer="1")
    with LoopThread() as loop:
        rollouts = GroupRollouts(
            Episodes(model, tokens),  # type: ignore[arg-type]
            loop,
            {"a": task},
            estimator="trl",
            seed=0,
            eos_id=tokenizer.eos_token_id,
            audit=audit.samples,
        )
        trainer = SandboxGRPOTrainer(
            model=model,
            args=GRPOConfig(
                str(directory),
                per_device_train_batch_size=ROWS,
                num_generations=GROUP,
                max_steps=steps,
                bf16=False,
                use_cpu=not torch.cuda.is_available(),
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                logging_steps=1,
                remove_unused_columns=False,
            ),
            train_dataset=Dataset.from_dict({"prompt": ["a"] * ROWS}),
            processing_class=tokenizer,
            reward_funcs=outcome_reward,
            rollout_func=rollouts,
            audit=audit,
        )
        for owner, part in (
            (audit.samples, "rolled_out"),
            (audit.samples, "in_loss"),
            (audit.shares, "take"),
        ):
            clock.around(owner, part, "samples")
        for part in ("on_pre_optimizer_step", "on_optimizer_step"):
            clock.around(audit.updates, part, "updates")
        clock.around(audit.sampler, "look", "sampler")
        clock.around(trainer, "training_step", "training step, sampling included")
        clock.around(rollouts.loop, "run", "sampling")
        trainer.train()
    seconds = clock.seconds
    update = seconds["training step, sampling included"] - seconds["sampling"]
    parts = {name: seconds[name] for name in ("samples", "updates", "sampler")}
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "update_s": round(update / steps, 4),
        "audit_ms": {name: round(1e3 * spent / steps, 3) for name, spent in parts.items()},
        "share": round(sum(parts.values()) / update, 5),
        "alarms": [alarm.detail for alarm in audit.alarms.raised],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=256, help="sampled tokens of an episode, about")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = measure(options.steps, options.tokens, Path(directory))
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found), encoding="utf-8")
    if found["share"] > REQUIRED_SHARE or found["alarms"]:
        sys.exit(f"over {REQUIRED_SHARE:.0%} of an update, or alarms where nothing is wrong")


if __name__ == "__main__":
    main()
