"""The warm-up: expert episodes in real sandboxes, then fine-tuning on the successful ones.

Its result is cached below the output directory under a hash of everything that it depends on, so
equal recipes share it and a changed one makes its own. `python -m sandbox_rl.runs.warmup RECIPE BASE_DIR` is
a warm-up outside the process group of those that train.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

import sandbox_rl
from sandbox_rl.agents.base import EpisodeRequest, EpisodeSettings
from sandbox_rl.agents.tokens import TokenAgent
from sandbox_rl.builders import build_backend, build_chat, build_engine
from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.config.load import load_recipe
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.display import Display, Progress, Silent
from sandbox_rl.errors import ConfigError, UserError, environment_error
from sandbox_rl.evaluation.plan import task_key
from sandbox_rl.metrics import SOLVED, Logs
from sandbox_rl.model_builders import settled
from sandbox_rl.observer import EachRollout
from sandbox_rl.outputs import new_directory
from sandbox_rl.policies.base import Sampling
from sandbox_rl.policies.scripted import Script, ScriptedPolicy
from sandbox_rl.runs.resume import prompt_digests
from sandbox_rl.seeds import derive_seed
from sandbox_rl.tasks.load import load_tasks
from sandbox_rl.training.config import WarmupSettings
from sandbox_rl.training.experts import EXPERTS, Expert, ExpertTurn
from sandbox_rl.training.host_memory import free_memory
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.models import compute_dtype, end_turns_with, load_trained
from sandbox_rl.training.pretrained import generation_ends, load_tokenizer
from sandbox_rl.training.sft import fine_tune, sft_rows
from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer
from sandbox_rl.types import Rollout, Task

TOKENIZER_EPISODES = 64
"""Expert episodes on which the tiny model's tokenizer is trained."""


@dataclass(frozen=True, slots=True)
class WarmupResult:
    """The fine-tuned checkpoint; `cached` when an earlier warm-up had made it."""

    path: Path
    cached: bool
    episodes: int
    successful: int
    loss: float


def warmup(recipe: Recipe, *, base_dir: Path, display: Display) -> WarmupResult:
    """Run the recipe's warm-up, or find the result of an equal one.

    Raises:
        ConfigError: the recipe has no warm-up, or the expert never succeeds.
    """
    settings, recipe, tasks, target = _planned(recipe, base_dir)
    if (made := _made(target)) is not None:
        return made
    expert = EXPERTS.find(settings.expert)
    with LoopThread() as loop:
        tokenizer, model = _begin_with(loop, recipe, base_dir, expert, tasks)
        chat = build_chat(recipe, tokenizer, generation_ends(model))
        with display.progress("Expert episodes", len(tasks)) as bar:
            rollouts = _expert_episodes(loop, recipe, base_dir, chat, expert, tasks, bar)
    kept = [r for r in rollouts if r.reward.value is not None and r.reward.value >= SOLVED]
    if not kept:
        raise ConfigError(
            f"warmup.expert: {settings.expert!r} solved none of {len(rollouts)} tasks, so there is nothing "
            f"to learn from (first: stop {rollouts[0].trajectory.stop.value}, reward "
            f"{rollouts[0].reward.value}); choose an expert that fits the data"
        )
    try:
        with new_directory(target, "warmup") as partial:
            with display.progress("Fine-tuning", _sft_steps(settings, len(kept))) as bar:
                loss = fine_tune(
                    model,
                    tokenizer,
                    sft_rows([r.trajectory for r in kept]),
                    output_dir=partial / "sft",
                    fields=settings.sft,
                    seed=recipe.seed,
                    dtype=compute_dtype(recipe.model),
                    callbacks=[_StepBar(bar)],
                )
            shutil.rmtree(partial / "sft", ignore_errors=True)
            end_turns_with(model, chat.ends)
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            facts: dict[str, Any] = {"episodes": len(rollouts), "successful": len(kept), "loss": loss}
            (partial / "warmup.json").write_text(json.dumps(facts) + "\n")
    except ConfigError:
        if (made := _made(target)) is None:  # no other process was sooner
            raise
    else:
        made = WarmupResult(target, cached=False, **facts)
    del model
    free_memory()  # servers start next, perhaps on the same device
    return made


def cached(recipe: Recipe, *, base_dir: Path) -> WarmupResult | None:
    """What an equal warm-up has come to, or None.

    Raises:
        ConfigError: the recipe has no warm-up.
    """
    return _made(_planned(recipe, base_dir)[-1])


def _planned(recipe: Recipe, base_dir: Path) -> tuple[WarmupSettings, Recipe, Sequence[Task], Path]:
    """Its settings, the recipe with all of them, the expert's tasks, and where the result belongs."""
    if recipe.warmup is None:
        raise ConfigError("this recipe has no 'warmup:' block; add one, e.g. warmup: {episodes: 1000}")
    settings, recipe = recipe.warmup, settled(recipe)
    tasks = load_tasks(recipe.data, split="train", base_dir=base_dir)[: settings.episodes]
    folders = [base_dir / folder for folder in recipe.prompts]
    prompts = prompt_digests((task.domain for task in tasks), folders)
    return settings, recipe, tasks, Path(recipe.output_dir) / "warmup" / _key(recipe, tasks, prompts)


def _begin_with(
    loop: LoopThread, recipe: Recipe, base_dir: Path, expert: Expert, tasks: Sequence[Task]
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and model, all of whose weights are trained.

    The tiny model's tokenizer is trained on what the expert does.
    """
    if recipe.model.path != "tiny":
        whole = recipe.model.model_copy(update={"quantization": None, "lora": None})
        return load_tokenizer(whole), load_trained(whole)
    bytewise = build_chat(recipe, tiny_tokenizer())
    # In bytes every turn is several times as long as it will be: its budgets do not apply yet.
    unbounded = recipe.model_copy(update={"episode": EpisodeSettings()})
    first = _expert_episodes(loop, unbounded, base_dir, bytewise, expert, tasks[:TOKENIZER_EPISODES])
    tokenizer = tiny_tokenizer(
        bytewise.decode((*r.trajectory.prompt_ids, *r.trajectory.completion_ids)) for r in first
    )
    return tokenizer, tiny_model(tokenizer, seed=recipe.seed)


def _made(target: Path) -> WarmupResult | None:
    facts = target / "warmup.json"
    return WarmupResult(target, cached=True, **json.loads(facts.read_text())) if facts.exists() else None


def _key(recipe: Recipe, tasks: Sequence[Task], prompts: Mapping[str, str]) -> str:
    """A hash of everything that the result depends on: of files what they say, and not where they lie.

    Args:
        prompts: of `prompt_digests`.
    """
    assert recipe.warmup is not None
    parts = {
        "version": sandbox_rl.__version__,
        "seed": recipe.seed,
        **{
            name: getattr(recipe, name).model_dump(mode="json")
            for name in ("chat", "warmup", "reward", "sandbox", "episode")
        },
        # The warm-up trains all weights, whole.
        "model": recipe.model.model_dump(mode="json", exclude={"lora", "quantization"}),
        "prompts": prompts,
        "tasks": [task_key(task) for task in tasks],
        "tools": recipe.tools,
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _expert_episodes(
    loop: LoopThread,
    recipe: Recipe,
    base_dir: Path,
    chat: ChatFormat,
    expert: Expert,
    tasks: Sequence[Task],
    bar: Progress | None = None,
) -> list[Rollout]:
    requests = [
        EpisodeRequest(f"expert-{i:05d}", task, derive_seed(recipe.seed, "expert", task.id))
        for i, task in enumerate(tasks)
    ]
    policy = ScriptedPolicy(
        _cast(expert, {r.id: (r.task, random.Random(r.seed)) for r in requests}, chat), max_context=1 << 20
    )
    engine = build_engine(
        recipe,
        base_dir=base_dir,
        agent=TokenAgent(policy, chat),
        sampling=Sampling(),
        backend=build_backend(recipe),
    )

    async def run() -> list[Rollout]:
        async with engine:
            shown = None if bar is None else EachRollout(lambda _, r: bar.advance(r.reward.value))
            return await engine.run(requests, observer=shown)

    return loop.run(run())


def _cast(expert: Expert, parts: Mapping[str, tuple[Task, random.Random]], chat: ChatFormat) -> Script:
    """Plays each episode's expert."""
    playing: dict[str, Generator[ExpertTurn, str, None]] = {}
    seen: dict[str, int] = {}

    def play(episode_id: str, turn: int, ids: Sequence[int]) -> Sequence[int]:
        if turn == 0:
            playing[episode_id] = expert(*parts[episode_id])
            step = next(playing[episode_id])
        else:
            step = playing[episode_id].send(chat.decode(ids[seen[episode_id] :]))
        said = chat.render_call(step.text, step.calls)
        seen[episode_id] = len(ids) + len(said)
        return said

    return play


def _sft_steps(settings: WarmupSettings, rows: int) -> int:
    """How many updates the fine-tuning takes, for the progress bar."""
    fields = settings.sft
    if fields.get("max_steps", -1) > 0:
        return int(fields["max_steps"])
    batch = fields.get("per_device_train_batch_size", 8) * fields.get("gradient_accumulation_steps", 1)
    return int(fields.get("num_train_epochs", 3) * -(-rows // batch))


class _StepBar(TrainerCallback):  # type: ignore[misc]
    def __init__(self, bar: Progress) -> None:
        self._bar = bar

    def on_step_end(self, args: object, state: object, control: object, **kwargs: Any) -> None:
        self._bar.step()

    def on_log(self, args: object, state: object, control: object, logs: Logs, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._bar.note(f"loss {float(logs['loss']):.3f}")


def _main() -> int:
    """Exit code 2 and one line for a user's mistake, and for a failure of the environment."""
    try:
        warmup(load_recipe(Path(sys.argv[1])), base_dir=Path(sys.argv[2]), display=Silent())
    except Exception as error:
        said = str(error) if isinstance(error, UserError) else environment_error(error)
        if said is None:
            raise
        print(said, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())
