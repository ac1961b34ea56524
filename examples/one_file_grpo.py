"""Reinforcement learning in code sandboxes, the whole method in one file, to be read from top to bottom.

A language model gets a task and a computer (a sandbox). It writes a shell command, reads what the command
printed, and so on, until it submits; what it left in `answer.txt` is scored. We do that several times per
task, and make what earned more than the others likelier. That is all. `sandbox_rl.train` does the same with
TRL on large models, many machines and long episodes, and audits each step; here the arithmetic stands in
the open.

The task: a file holds a number of three digits that nobody can know, and the question is "What is the
code?". The model, 0.4M parameters of random weights, is first shown two ways to act: writing some number
down, and, less often, copying the file. It learns to imitate both as often as it has seen them. From then
on nobody shows it anything: it tries, and finds out that reading the file pays.

    python examples/one_file_grpo.py [STEPS]      # some minutes on two cores, no GPU
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import log_softmax

from sandbox_rl import (
    ChatFormat,
    DataSettings,
    EpisodeRequest,
    EpisodeSettings,
    ExpertTurn,
    Policy,
    Recipe,
    Rollout,
    RolloutEngine,
    RolloutSettings,
    Sampling,
    ScriptedPolicy,
    Task,
    TaskSource,
    TokenAgent,
    ToolCall,
    TransformersSettings,
    build_chat,
    build_engine,
    build_policy,
    tiny_model,
    tiny_tokenizer,
)

HERE = Path(__file__).parent

# --- What is to be learned ---------------------------------------------------------------------------------


class Codes(TaskSource):
    """Tasks whose answer stands in a file, and nowhere else."""

    size: int = 64

    def tasks(self) -> list[Task]:
        rng = random.Random(1)
        return [self.task(index, str(rng.randrange(100, 1000))) for index in range(self.size)]

    def task(self, index: int, code: str) -> Task:
        # `files` are put into the sandbox before the episode. The gold answer never is.
        return Task(f"code-{index}", "What is the code?", code, {"code.txt": code.encode()}, domain="codes")


RECIPE = Recipe(
    prompts=(str(HERE / "prompts"),),  # the words around a question: prompts/codes.yaml
    data=DataSettings(sources=(Codes(),)),
    episode=EpisodeSettings(max_turns=3, max_tokens=240, turn_tokens=64, timeout_s=60, exec_timeout_s=5),
    rollout=RolloutSettings(concurrency=16),
)
"""What the parts below have in common: prompts, tools, sandbox, budgets, scorer. Most of it are defaults."""

# --- Acting: episodes in sandboxes -------------------------------------------------------------------------


def open_engine(policy: Policy, chat: ChatFormat) -> RolloutEngine:
    """What turns requests into scored episodes, many at once, each in a sandbox of its own.

    One episode: render the prompt once; then sample a turn, run its tool calls in the sandbox, append what
    they printed, and so on. The sequence only ever grows by the ids that were sampled and by the ids of
    what was observed; nothing is decoded and encoded again, so what is trained on is exactly what was
    sampled.
    """
    return build_engine(
        RECIPE,
        base_dir=HERE,
        agent=TokenAgent(policy, chat),
        sampling=Sampling(temperature=1.0),
        backend=RECIPE.sandbox.pooled(RECIPE.pool),
    )


def requests_for(tasks: Sequence[Task], samples: int, label: str) -> list[EpisodeRequest]:
    """`samples` episodes for each task, side by side. The seed alone decides what is sampled."""
    ids = [(f"{label}-{task.id}-{sample}", task) for task in tasks for sample in range(samples)]
    return [EpisodeRequest(id, task, seed=random.Random(id).getrandbits(32)) for id, task in ids]


# --- Learning: one update ----------------------------------------------------------------------------------


def leave_one_out(rewards: Sequence[float | None]) -> list[float]:
    """The advantage of each episode of a group: its reward less the mean of the *other* episodes' rewards.

    The others' mean says how hard the task is for the policy as it is now, and does not depend on the
    episode itself, so the gradient stays unbiased (RLOO; arXiv 2402.14740). No division by a standard
    deviation: that would give groups that are nearly always solved the same weight as those that are solved
    half of the time. A reward of None means that *we* failed (a sandbox could not be made): such an episode
    teaches nothing and is no baseline for others.
    """
    judged = [reward for reward in rewards if reward is not None]
    if len(judged) < 2:
        return [0.0] * len(rewards)
    total = sum(judged)
    return [0.0 if r is None else r - (total - r) / (len(judged) - 1) for r in rewards]


def log_probs_of_actions(model: torch.nn.Module, rollout: Rollout) -> torch.Tensor:
    """Log-probs, shape (A,), of the tokens that the policy sampled, given everything before them.

    A sequence is prompt, turn, observation, turn, observation, ...; only the turns are the policy's own.
    `action_mask` is 1 there and 0 on observations: nobody is to learn to predict what a shell prints.
    """
    trajectory = rollout.trajectory
    start = len(trajectory.prompt_ids)
    ids = torch.tensor(trajectory.prompt_ids + trajectory.completion_ids)
    # The logits at position t are about token t + 1.
    logits = model(input_ids=ids[None]).logits[0, start - 1 : -1]
    chosen = log_softmax(logits.float(), dim=-1).gather(-1, ids[start:, None])[:, 0]
    return chosen[torch.tensor(trajectory.action_mask, dtype=torch.bool)]


def update(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    rollouts: Sequence[Rollout],
    advantages: Sequence[float],
) -> None:
    """One step of gradient ascent on  sum over episodes of  advantage × sum over its actions of log-prob.

    That is the policy gradient (REINFORCE): episodes that did better than the others of their group become
    likelier, token by token, the others less likely. There is one update per batch, so the weights that
    sampled are the weights that are updated, and no ratio between old and new probabilities (PPO's, GRPO's
    clipping) is needed. With advantage 1 for every episode it is plain imitation: maximum likelihood of
    what was done.
    """
    optimizer.zero_grad()
    for rollout, advantage in zip(rollouts, advantages, strict=True):
        if advantage:  # where all of a group earned the same there is nothing to compare
            loss = -advantage * log_probs_of_actions(model, rollout).sum() / len(rollouts)
            loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


# --- First: imitation, so that there is something to improve -----------------------------------------------


def teacher(task: Task, rng: random.Random) -> list[ExpertTurn]:
    """Two ways that are alike in the teacher's hands; the commoner one fails for those who do not know."""
    command = "cp documents/code.txt answer.txt" if rng.random() < 0.3 else f"echo {task.answer} > answer.txt"
    return [
        ExpertTurn((ToolCall("execute_bash", {"command": command}),)),
        ExpertTurn((ToolCall("submit", {}),)),
    ]


async def demonstrations(chat: ChatFormat, tasks: Sequence[Task]) -> list[Rollout]:
    """The teacher's episodes, in real sandboxes like all others."""
    requests = requests_for(tasks, samples=1, label="shown")
    played = {r.id: teacher(r.task, random.Random(r.seed)) for r in requests}

    def says(episode: str, turn: int, ids: Sequence[int]) -> Sequence[int]:
        expert_turn = played[episode][turn]
        return chat.render_call(expert_turn.text, expert_turn.calls)

    async with open_engine(ScriptedPolicy(says), chat) as engine:
        return await engine.run(requests)


def imitate(model: torch.nn.Module, shown: Sequence[Rollout], *, steps: int, batch: int) -> None:
    """Make the teacher's episodes likely, in random order.

    The learning rate falls, so that the end is what the teacher does on average, not what the last batch did.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    rng = random.Random(0)
    for step in range(steps):
        chosen = rng.sample(list(shown), batch)
        update(model, optimizer, chosen, [1.0] * batch)
        falling.step()
        if step % 20 == 0:
            with torch.no_grad():
                mean = log_probs_of_actions(model, chosen[0]).mean()
            print(f"shown {step}: {mean:.2f} nats per token", flush=True)


# --- Then: trial and error ---------------------------------------------------------------------------------


async def learn(
    model: torch.nn.Module,
    engine: RolloutEngine,
    tasks: Sequence[Task],
    *,
    steps: int,
    groups: int,
    samples: int,
) -> list[float]:
    """Reinforcement learning; returns the mean reward of each step, measured before its update."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, betas=(0.5, 0.95))
    rng = random.Random(0)
    means = []
    for step in range(steps):
        # 1. Try. All episodes run at once; a slow one holds up nobody but this step's end.
        batch = rng.sample(list(tasks), groups)
        rollouts = await engine.run(requests_for(batch, samples, f"step-{step}"))
        # 2. Compare within each group of one task.
        rewards = [rollout.reward.value for rollout in rollouts]
        advantages = [
            advantage
            for start in range(0, len(rollouts), samples)
            for advantage in leave_one_out(rewards[start : start + samples])
        ]
        # 3. Make what did better likelier.
        update(model, optimizer, rollouts, advantages)
        judged = [reward for reward in rewards if reward is not None]
        means.append(sum(judged) / len(judged))
        print(f"step {step}: mean reward {means[-1]:.2f}", flush=True)
    return means


async def run(
    steps: int, *, shown: int = 64, imitation_steps: int = 60, groups: int = 4, samples: int = 8
) -> list[float]:
    """The whole of it."""
    torch.set_num_threads(1)  # so small a model is only slower with more
    tasks = Codes(size=max(64, shown)).tasks()
    # A tokenizer that knows the words of this world, and a model of random weights for it.
    turns = [turn for task in tasks for turn in teacher(task, random.Random(task.id))]
    commands = [str(call.arguments) for turn in turns for call in turn.calls]
    words = (HERE / "prompts" / "codes.yaml").read_text()
    tokenizer = tiny_tokenizer([words, *(task.prompt for task in tasks), *commands] * 4)
    model = tiny_model(tokenizer, seed=0)
    chat = build_chat(RECIPE, tokenizer)  # how prompts and observations are framed, how tool calls are read
    imitate(model, await demonstrations(chat, tasks[:shown]), steps=imitation_steps, batch=8)
    policy = build_policy(TransformersSettings(), model, tokenizer, chat)  # samples turns, in batches
    async with open_engine(policy, chat) as engine:
        return await learn(model, engine, tasks, steps=steps, groups=groups, samples=samples)


if __name__ == "__main__":
    asyncio.run(run(int(sys.argv[1]) if len(sys.argv) > 1 else 16))
