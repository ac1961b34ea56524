"""Whether learning suffers where weights change in the middle of turns: one toy, several seeds, three ways.

The asynchronous trainer is the real one (TRL's loss, admission, ages, truncated ratios); its rollouts are
sampled token by token in this process from the weights that it publishes, as a server does it: the keys and
values of earlier tokens stay those of the weights that computed them until the turn ends. While an update is
computed every episode goes on by `--pace` tokens. The ways differ only in what a publication does to turns:

    divided   they go on with the new weights from their next token on, as servers do it
    borders   it waits until they have ended, so that each turn has one version
    in turns  `max_staleness: 0`: sampling and updating take turns, all tokens are of the newest weights

The toy: a prompt names one of four classes, an episode is two turns of 6 to 16 tokens, and its reward is the
share of its tokens that belong to the class. After every tenth update the weights are asked for fresh
episodes of each class; their mean reward is the curve.

    python scripts/bench_divided_turns.py [--seeds 0 1 2] [--updates 70] [--json FILE]

Exit code 1: the mean of the curve, over seeds, is lower by more than 5 % where turns are divided than at
borders, or hardly any turn was divided.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import queue
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as the command line does, before torch is imported

import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, PrinterCallback
from transformers.utils.logging import disable_progress_bar

from sandbox_rl.training.asynchronous.config import async_config
from sandbox_rl.training.asynchronous.trainer import SandboxAsyncTrainer
from sandbox_rl.training.publication.base import UnsentWeights
from sandbox_rl.training.samples import FinishedGroup, finished_group
from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer
from sandbox_rl.types import Action, Answer, AnswerStatus, Reward, Rollout, StopReason, Task, Trajectory, Turn

WAYS = ("divided", "borders", "in turns")
TOKENIZER = tiny_tokenizer()
CLASSES, SIZE = 4, 32  # episodes of a group
PROMPT, OBSERVED = (20, 21, 22), (30, 31, 32)
TURNS, SHORTEST, LONGEST = 2, 6, 16
AT_ONCE = 4  # groups
LOOK_EVERY = 10
MOST = 0.05
"""Of the mean of the curve at borders, by which that of divided turns may be lower."""
LEAST_DIVIDED = 0.3
"""Share of trained tokens in divided turns, below which nothing was shown."""


@dataclass
class Turned:
    """A turn as it was sampled, of all episodes of a group; shape (SIZE, T)."""

    ids: list[torch.Tensor] = field(default_factory=list)
    log_probs: list[torch.Tensor] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)


class Group:
    """Episodes of one number that are being sampled, all at the same place."""

    def __init__(self, number: int, seed: int) -> None:
        self.number, self.kind = number, number % CLASSES
        draw = random.Random(f"{seed}-{number}")
        self._lengths = [draw.randint(SHORTEST, LONGEST) for _ in range(TURNS)]
        self._dice = torch.Generator().manual_seed(draw.getrandbits(60))
        prompt = torch.tensor([[*PROMPT, 40 + self.kind]])
        self._pending = prompt.expand(SIZE, -1)  # what the next forward pass reads
        self._cache = DynamicCache()
        self.turns = [Turned()]

    @property
    def done(self) -> bool:
        return len(self.turns) == TURNS and self.between

    @property
    def between(self) -> bool:
        """Whether no turn is going on."""
        return len(self.turns[-1].ids) == self._lengths[len(self.turns) - 1]

    @torch.no_grad()
    def step(self, model: nn.Module, version: int) -> None:
        """One token of each episode, by these weights over keys of those that read what came before."""
        if self.between:  # the next turn: everything is read anew, as prefixes of other weights are not used
            told = torch.tensor([OBSERVED]).expand(SIZE, -1)
            sampled = torch.stack(self.turns[-1].ids, 1)
            prompt = torch.tensor([[*PROMPT, 40 + self.kind]]).expand(SIZE, -1)
            self._pending, self._cache = torch.cat([prompt, sampled, told], 1), DynamicCache()
            self.turns.append(Turned())
        out = model(input_ids=self._pending, past_key_values=self._cache, use_cache=True)
        log_probs = out.logits[:, -1].float().log_softmax(-1)
        ids = torch.multinomial(log_probs.exp(), 1, generator=self._dice)
        turn = self.turns[-1]
        turn.ids.append(ids[:, 0])
        turn.log_probs.append(log_probs.gather(1, ids)[:, 0])
        turn.versions.append(version)
        self._pending = ids

    def rollouts(self) -> list[Rollout]:
        """What became of it."""
        return [self._rollout(row) for row in range(SIZE)]

    def reward(self, row: int) -> float:
        """Share of an episode's tokens that belong to its class."""
        return fmean(int(ids[row]) % CLASSES == self.kind for turn in self.turns for ids in turn.ids)

    def _rollout(self, row: int) -> Rollout:
        turns = []
        for place, turn in enumerate(self.turns):
            switches = [(i, b) for i, (a, b) in enumerate(pairwise(turn.versions), 1) if a != b]
            action = Action(
                tuple(int(ids[row]) for ids in turn.ids),
                tuple(float(each[row]) for each in turn.log_probs),
                "length",
                turn.versions[0],
                tuple(switches),
            )
            turns.append(Turn(action, observation_ids=OBSERVED if place + 1 < TURNS else ()))
        task, prompt = Task(id=f"class-{self.kind}", prompt="", answer=""), (*PROMPT, 40 + self.kind)
        ended = StopReason.SUBMITTED, Answer(AnswerStatus.OK, ""), f"{self.number}-{row}"
        trajectory = Trajectory(task.id, prompt, tuple(turns), *ended)
        return Rollout(trajectory, Reward(self.reward(row)), task)


class Server(UnsentWeights):
    """Weights that are sampled with, and the episodes that go on meanwhile; TRL's rollout worker as well."""

    def __init__(self, model: PreTrainedModel, way: str, seed: int, pace: int) -> None:
        super().__init__(served=True)
        self.rollout_buffer = self  # type: ignore[assignment]
        self.metrics_queue: queue.Queue[dict[str, float]] = queue.Queue()
        self.model, self.way, self.seed, self.pace = model.eval(), way, seed, pace
        self.live: list[Group] = []
        self.finished: list[FinishedGroup] = []
        self.curve: list[float] = []

    def publish(self, model: nn.Module, step: int) -> int:
        """What was sampled while the update was computed is of the weights before it."""
        if step > 0:
            self.advance(self.pace)
        if self.way == "borders":
            while open_turns := [group for group in self.live if not group.between]:
                self.advance(1, open_turns)
        self.model.load_state_dict(model.state_dict())
        if step % LOOK_EVERY == 0:
            self.curve.append(fresh_reward(self.model, step))
        return super().publish(model, step)

    def advance(self, tokens: int, those: Sequence[Group] | None = None) -> None:
        """Some tokens of each of the episodes."""
        for _ in range(tokens):
            for group in list(self.live if those is None else those):
                group.step(self.model, self.version.value)
                if group.done:
                    self.live.remove(group)
                    self.finished.append(finished_group(group.rollouts(), number=group.number, kind="grpo"))

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def check_health(self, stale_after_s: float) -> None: ...

    def admit(self, numbers: Sequence[int]) -> None:
        self.live += [Group(number, self.seed) for number in numbers]

    def get_nowait(self) -> FinishedGroup:
        if not self.finished:
            raise queue.Empty
        return self.finished.pop(0)

    def get(self, timeout: float) -> FinishedGroup:
        """The trainer waits: episodes go on until one has ended."""
        while not self.finished and self.live:
            self.advance(1)
        return self.get_nowait()


def fresh_reward(model: nn.Module, step: int) -> float:
    """Mean reward of episodes of each class that no training sees."""
    groups = [Group(-1 - kind, 1000 + step) for kind in range(CLASSES)]
    for group in groups:
        while not group.done:
            group.step(model, 0)
    return fmean(group.reward(row) for group in groups for row in range(SIZE))


def run(directory: Path, way: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One training; what it learnt, and how its turns were divided."""
    start, started = directory / f"model-{seed}", time.monotonic()
    if not start.exists():
        tiny_model(TOKENIZER, seed=seed).save_pretrained(start)
    server = Server(AutoModelForCausalLM.from_pretrained(start), way, seed, options.pace)
    longest = len(PROMPT) + 1 + TURNS * LONGEST + len(OBSERVED)
    args = async_config(
        {
            "max_steps": options.updates,
            "num_generations": SIZE,
            "token_budget": options.tokens,
            "max_staleness": 0 if way == "in turns" else options.staleness,
            "learning_rate": options.rate,
            "lr_scheduler_type": "constant",
            "activation_checkpointing": False,
            "save_strategy": "no",
            "disable_tqdm": True,
        },
        checkpoints=directory / f"{way}-{seed}",
        name="toy",
        seed=seed,
        max_tokens=longest,
        longest=longest,
        dtype=torch.float32,
    )
    trainer = SandboxAsyncTrainer(
        model=str(start),
        args=args,
        at_once=AT_ONCE,
        train_dataset=Dataset.from_dict({"prompt": ["a"]}),
        processing_class=TOKENIZER,
        rollout_worker=server,
        weights=server,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    logged = [line for line in trainer.state.log_history if "off_policy/divided_turns" in line]
    return {
        "way": way,
        "seed": seed,
        "curve": server.curve,
        "mean": fmean(server.curve),
        "last": server.curve[-1],
        "divided": fmean(line["off_policy/divided_turns"] for line in logged),
        "age": fmean(line["off_policy/age_mean"] for line in logged),
        "seconds": time.monotonic() - started,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=70)
    parser.add_argument("--pace", type=int, default=4, help="tokens of each episode during one update")
    parser.add_argument("--staleness", type=int, default=4, help="grpo.max_staleness of the first two ways")
    parser.add_argument("--tokens", type=int, default=1700, help="of an update")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    for noisy in ("sandbox_rl", "trl", "transformers"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    disable_progress_bar()
    warnings.simplefilter("ignore")
    found = []
    print(f"{'':9} {'seed':>4} {'divided':>8} {'age':>5} {'start':>6} {'mean':>6} {'last':>6} {'seconds':>8}")
    with tempfile.TemporaryDirectory(prefix="divided") as folder:
        for seed in options.seeds:
            for way in options.ways:
                one = run(Path(folder), way, seed, options)
                found.append(one)
                print(
                    f"{way:9} {seed:>4} {one['divided']:>8.2f} {one['age']:>5.2f} {one['curve'][0]:>6.3f} "
                    f"{one['mean']:>6.3f} {one['last']:>6.3f} {one['seconds']:>8.0f}",
                    flush=True,
                )
    means = {way: fmean(one["mean"] for one in found if one["way"] == way) for way in options.ways}
    shares = [one["divided"] for one in found if one["way"] == "divided"]
    print("mean of the curve: " + ", ".join(f"{way} {mean:.3f}" for way, mean in means.items()))
    if options.json is not None:
        options.json.write_text(json.dumps({**vars(options), "json": None, "runs": found}, indent=1))
    if not {"divided", "borders"} <= set(options.ways):
        return 0
    suffers = means["divided"] < (1 - MOST) * means["borders"]
    return 1 if suffers or fmean(shares) < LEAST_DIVIDED else 0


if __name__ == "__main__":
    sys.exit(main())
