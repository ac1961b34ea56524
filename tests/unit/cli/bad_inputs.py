"""Wrong inputs of every command: the command line, what its one line of error must name, the exit code.

Each row is run in a directory that `prepare` has filled; nothing in it may change.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

PROMPTS = str(Path(__file__).parents[3] / "recipes" / "prompts")
RECIPE = {
    "name": "r",
    "model": {"path": "tiny", "dtype": "float32"},
    "prompts": [PROMPTS],
    "data": {
        "sources": [{"type": "reasoning_gym", "dataset": "chain_sum", "size": 40, "domain": "arithmetic"}]
    },
    "warmup": {"episodes": 8},
    "reward": {"workers": 1},
    "grpo": {"per_device_train_batch_size": 8, "num_generations": 4, "max_steps": 1},
}
BUILD = {
    "source": {"type": "table", "path": "rows.jsonl", "columns": {"context": "context"}},
    "output_dir": "built",
}


def prepare(directory: Path) -> None:
    """What the rows refer to."""
    (directory / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    (directory / "build.yaml").write_text(yaml.safe_dump(BUILD))
    rows = [{"prompt": f"Q{i}?", "answer": f"A{i}", "context": f"Text {i}."} for i in range(20)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "empty.jsonl").write_text("")
    (directory / "broken.jsonl").write_text('{"prompt": \n')
    (directory / "binary.jsonl").write_bytes(b"\xff\xfe\x00\x01" * 10)
    (directory / "empty.yaml").write_text("")
    (directory / "list.yaml").write_text("- a\n- b\n")
    (directory / "broken.yaml").write_text("a: [1\nb: }\n")
    (directory / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01" * 10)
    (directory / "twice.yaml").write_text("name: a\nname: b\n")
    (directory / "hollow").mkdir()
    run = directory / "trained"
    (run / "checkpoints").mkdir(parents=True)
    (run / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (run / "results.json").write_text("{}")
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    broken = directory / "broken_run"
    broken.mkdir()
    (broken / "recipe.yaml").write_text("a: [1\n")
    (broken / "results.json").write_text("{")
    (directory / "taken").mkdir()
    (directory / "taken" / "mine.txt").write_text("mine")
    (directory / "page.md").write_text("mine")
    (directory / "nowhere").symlink_to("does/not/exist")
    model = directory / "no_model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (directory / "docker").mkdir()


TRAIN = ("train", "--dry-run", "r.yaml")
EVAL = ("eval", "r.yaml")
BUILT = ("build-data", "build.yaml")
RUN = ("run", "What?")

Row = tuple[tuple[str, ...], tuple[str, ...]]


def rows() -> list[Row]:
    """Command line → what the error must name. All end with exit code 2."""
    return [
        *_train(),
        *_dry(),
        *_export(),
        *_build(),
        *_eval(),
        *_compare(),
        *_check(),
        *_look(),
        *_run(),
        *_sandboxes(),
    ]


def _with(base: tuple[str, ...], *cases: tuple[str, ...]) -> list[Row]:
    """Rows of one override each: (override, must name …)."""
    return [((*base, first), named) for first, *named in cases]  # type: ignore[misc]


def _train() -> list[Row]:
    files = [
        (("train", name), (name, *named))
        for name, *named in (
            ("missing.yaml",),
            ("hollow",),
            ("empty.yaml",),
            ("list.yaml",),
            ("broken.yaml",),
            ("binary.yaml",),
            ("twice.yaml", "name"),
            ("nowhere",),
        )
    ]
    return [
        (("train", "r.yaml", "--quiet", "--json"), ("--quiet and --json", "expected one")),
        *files,
        *_with(
            TRAIN,
            ("nonsense", "nonsense", "key=value"),
            ("=1", "key=value"),
            ("nam=x", "nam", "did you mean 'name'"),
            ("name=a/b", "name", "a/b"),
            ("name=", "name"),
            ("name=..", "name"),
            ("seed=x", "seed"),
            ("mode=sometimes", "mode", "sometimes"),
            ("estimator=mine", "estimator", "mine"),
            ("model.path=", "model.path"),
            ("model.dtype=int3", "model.dtype", "int3"),
            ("model.quantization=9bit", "model.quantization", "9bit"),
            ("model.lora={r: 0}", "model.lora.r", "0"),
            ("model.lora={r: -4}", "model.lora.r", "-4"),
            ("data.sources=[]", "data.sources"),
            ("data.sources=[{type: csvv}]", "csvv"),
            ("data.sources=[{type: table, path: none.jsonl}]", "none.jsonl"),
            ("data.sources=[{type: table, path: hollow}]", "hollow"),
            ("data.sources=[{type: table, path: empty.jsonl}]", "empty.jsonl"),
            ("data.sources=[{type: table, path: broken.jsonl}]", "broken.jsonl"),
            ("data.sources=[{type: table, path: binary.jsonl}]", "binary.jsonl"),
            ("data.sources=[{type: table, path: rows.jsonl, columns: {prompt: ask}}]", "ask"),
            ("data.sources.0.dataset=chain_summ", "chain_summ"),
            ("data.sources.0.size=0", "size", "0"),
            ("data.sources.0.size=-5", "size", "-5"),
            ("data.sources.7.size=5", "sources"),
            ("prompts=[no_such_prompts]", "no_such_prompts"),
            ("output_dir=r.yaml/runs", "output_dir", "r.yaml"),
            ("output_dir=nowhere/runs", "output_dir", "nowhere"),
            ("report_to=[tensorbord]", "report_to", "tensorbord", "tensorboard"),
            ("report_to=[comet_ml]", "report_to", "comet_ml", "not installed"),
            ("grpo=3", "grpo"),
            ("grpo.learning_rat=1", "grpo.learning_rat", "learning_rate"),
            ("grpo.learning_rate=-1e-6", "grpo.learning_rate", "-1e-06"),
            ("grpo.learning_rate=fast", "grpo.learning_rate", "fast"),
            ("grpo.learning_rate=.nan", "grpo.learning_rate", "nan"),
            ("grpo.per_device_train_batch_size=0", "grpo.per_device_train_batch_size", "0"),
            ("grpo.per_device_train_batch_size=-8", "grpo.per_device_train_batch_size", "-8"),
            ("grpo.per_device_train_batch_size=6", "num_generations=4"),
            ("grpo.num_generations=0", "grpo.num_generations", "0"),
            ("grpo.num_generations=1", "grpo.num_generations", "1"),
            ("grpo.gradient_accumulation_steps=0", "grpo.gradient_accumulation_steps", "0"),
            ("grpo.steps_per_generation=0", "grpo.steps_per_generation", "0"),
            ("grpo.num_iterations=0", "grpo.num_iterations", "0"),
            ("grpo.max_steps=0", "grpo.max_steps", "0"),
            ("grpo.save_steps=0", "grpo.save_steps", "0"),
            ("grpo.save_total_limit=1", "grpo.save_total_limit"),
            ("grpo.max_grad_norm=-1", "grpo.max_grad_norm", "-1"),
            ("grpo.weight_decay=-1", "grpo.weight_decay", "-1"),
            ("grpo.warmup_ratio=2", "grpo.warmup_ratio", "2"),
            ("grpo.temperature=0", "grpo.temperature", "0"),
            ("grpo.temperature=-1", "grpo.temperature", "-1"),
            ("grpo.top_p=0.5", "grpo.top_p", "0.5"),
            ("grpo.epsilon=-0.1", "grpo.epsilon", "-0.1"),
            ("grpo.beta=-1", "grpo.beta", "-1"),
            ("grpo.loss_type=mine", "loss_type", "mine"),
            ("grpo.optim=adamm", "grpo.optim", "adamm"),
            ("grpo.lr_scheduler_type=sin", "lr_scheduler_type", "sin"),
            ("grpo.use_vllm=true", "grpo.use_vllm", "policy.type"),
            ("grpo.num_train_epochs=-1", "grpo.num_train_epochs", "-1"),
            ("episode.max_turns=0", "episode.max_turns", "0"),
            ("episode.max_tokens=-1", "episode.max_tokens", "-1"),
            ("episode.timeout_s=0", "episode.timeout_s", "0"),
            ("episode.timeout_s=.inf", "episode.timeout_s", "inf"),
            ("rollout.concurrency=0", "rollout.concurrency", "0"),
            ("rollout.over_sample=2", "rollout.over_sample", "2"),
            ("rollout.overlong=zeero", "rollout.overlong", "zeero"),
            ("reward.workers=0", "reward.workers", "0"),
            ("reward.scorer=no.module:f", "no.module"),
            ("sandbox.type=vm", "vm"),
            ("sandbox.limits.memory_mb=1", "memory_mb", "1"),
            ("sandbox.limits.memory_mb=-1", "memory_mb", "-1"),
            ("sandbox.limits.processes=0", "processes", "0"),
            ("sandbox.bwrap=/no/bwrap", "/no/bwrap"),
            ("policy.type=magic", "magic"),
            ("launch.processes=0", "key 'launch.processes': 0", "greater than or equal to 1, or 'auto'"),
            ("policy={type: vllm, servers: none}", "key 'policy.servers': 'none'", "integer", "or 'auto'"),
            ("launch.config=binary.jsonl", "launch.config", "binary.jsonl", "launch.config=fsdp2"),
            ("launch.config=fsdp3", "launch.config", "'fsdp3'", "fsdp2"),
            ("policy.max_batch=0", "policy.max_batch", "0"),
            ("warmup.expert=no.module:f", "warmup.expert", "no.module"),
            ("warmup.episodes=0", "warmup.episodes", "0"),
            ("warmup=null", "model.path", "tiny"),
            ("evaluation.tasks=-1", "evaluation.tasks", "-1"),
            ("evaluation.samples=0", "evaluation.samples", "0"),
            ("curriculum.domain_weights={maths: 1}", "maths"),
            ("curriculum.domain_weights={arithmetic: -1}", "domain_weights", "-1"),
        ),
        (("train", "--resume", "r.yaml"), ("--resume", "runs/r")),
        (("train", "--resume", "r.yaml", "output_dir=trained"), ("--resume",)),
        (("train",), ("RECIPE",)),
        (("train", "--no-such", "r.yaml"), ("--no-such",)),
        (("no-such-command",), ("no-such-command",)),
        (("warmup", "r.yaml", "warmup=null"), ("warmup",)),
        (("warmup", "missing.yaml"), ("missing.yaml",)),
    ]


def _dry() -> list[Row]:
    return _with(
        TRAIN,
        ("model.path=no_model", "model.path", "no_model"),
        ("model.lora={r: 8, target_modules: [q_proj, nope]}", "model.lora.target_modules", "nope", "q_proj"),
        ("model.path=hollow", "model.path", "hollow"),
        ("model.path=no-such-owner/no-such-model", "model.path", "no-such-owner/no-such-model"),
        ("report_to=[wandbb]", "report_to", "wandbb", "wandb"),
        ("grpo.per_device_train_batch_size=0", "grpo.per_device_train_batch_size"),
        ("grpo.learning_rate=-1", "grpo.learning_rate"),
        ("sandbox.limits.memory_mb=1", "memory_mb", "1"),
        ("output_dir=r.yaml", "output_dir", "r.yaml"),
    )


def _export() -> list[Row]:
    return [
        (("replay",), ("RUN",)),
        (("replay", "trained"), ("no episode", "--rescore")),
        (("replay", "trained", "a", "b"), ("a and b", "expected the id of one episode")),
        (("replay", "trained", "a", "--rescore"), ("a and --rescore",)),
        (("replay", "trained", "a", "--to-step", "3"), ("a and --to-step",)),
        (("replay", "trained", "a", "-o", "x.json"), ("--output", "x.json", "--rescore")),
        (("replay", "missing", "a"), ("missing", "recipe.yaml")),
        (("replay", "hollow", "a"), ("hollow", "recipe.yaml")),
        (("replay", "broken_run", "a"), ("broken_run",)),
        (("replay", "trained", "a"), ("trained", "no journal")),
        (("replay", "trained", "a", "tools=[x]"), ("tools", "'x'")),
        (("replay", "trained", "--rescore"), ("trained", "no journal")),
        (("replay", "trained", "--rescore", "grpo.max_steps=2"), ("grpo.max_steps=2", "changes no score")),
        (("replay", "trained", "--rescore", "reward.workers=0"), ("reward.workers",)),
        (("replay", "trained", "--rescore", "missing.yaml"), ("missing.yaml",)),
        (("replay", "trained", "--rescore", "build.yaml"), ("build.yaml", "no block 'reward'")),
        (("replay", "trained", "--rescore", "-o", "page.md"), ("page.md", "exists already")),
        (("replay", "trained", "--to-step", "x"), ("--to-step", "integer")),
        (("replay", "trained", "--to-step", "3"), ("--to-step: 3", "no checkpoints")),
        (("replay", "trained", "--to-step", "3", "seed=1"), ("seed=1", "as it was")),
        (("bundle",), ("RUN",)),
        (("bundle", "missing"), ("missing", "recipe.yaml")),
        (("bundle", "hollow"), ("hollow", "recipe.yaml")),
        (("bundle", "trained"), ("trained", "no journal")),
        (("bundle", "trained", "-o", "page.md"), ("page.md", "exists already")),
        (("verify",), ("BUNDLE",)),
        (("verify", "missing"), ("missing", "expected a bundle")),
        (("verify", "trained"), ("trained", "expected a bundle")),
        (("verify", "page.md"), ("page.md", "no bundle")),
        (("verify", "binary.jsonl"), ("binary.jsonl", "no bundle")),
        (("export",), ("RUN",)),
        (("export", "trained"), ("OUTPUT",)),
        (("export", "missing", "out"), ("missing", "recipe.yaml")),
        (("export", "hollow", "out"), ("hollow", "recipe.yaml")),
        (("export", "r.yaml", "out"), ("r.yaml",)),
        (("export", "trained", "taken"), ("taken", "exists already")),
        (("export", "trained", "page.md"), ("page.md", "exists already")),
        (("export", "trained", "nowhere"), ("nowhere", "exists already")),
        (("export", "trained", "r.yaml/out"), ("OUTPUT", "r.yaml")),
        (("export", "trained", "out"), ("no complete checkpoint",)),
        (("export", "trained", "out", "--step", "7"), ("--step", "7")),
        (("export", "trained", "out", "--step", "-1"), ("--step",)),
        (("export", "trained", "out", "--step", "x"), ("--step", "x")),
        (("export", "broken_run", "out"), ("broken_run",)),
        (("export", "trained", "out", "--push-to-hub", "not an id!"), ("--push-to-hub", "not an id!")),
    ]


def _build() -> list[Row]:
    return [
        (("build-data",), ("SETTINGS",)),
        (("build-data", "missing.yaml"), ("missing.yaml",)),
        (("build-data", "list.yaml"), ("list.yaml",)),
        (("build-data", "r.yaml"), ("r.yaml",)),
        *_with(
            BUILT,
            ("distracters=2", "distracters", "distractors"),
            ("distractors=-1", "distractors", "-1"),
            ("held_out=2", "held_out", "2"),
            ("held_out=half", "held_out", "half"),
            ("max_file_chars=0", "max_file_chars", "0"),
            ("source.path=none.jsonl", "none.jsonl"),
            ("source.path=hollow", "hollow"),
            ("source.path=empty.jsonl", "empty.jsonl"),
            ("source.path=broken.jsonl", "broken.jsonl"),
            ("source.columns.context=contxt", "contxt"),
            ("source.columns={}", "source.columns.context"),
            ("source.type=xml", "xml"),
            ("output_dir=r.yaml/out", "output_dir", "r.yaml"),
            ("output_dir=nowhere", "output_dir", "nowhere"),
            ("output_dir=/proc/out", "output_dir", "/proc"),
        ),
    ]


def _eval() -> list[Row]:
    return [
        (("eval",), ("RECIPE|SUITE",)),
        (("eval", "missing.yaml"), ("missing.yaml",)),
        (("eval", "no-such-suite"), ("no-such-suite",)),
        (("eval", "empty.yaml"), ("empty.yaml",)),
        ((*EVAL, "--mode", "none"), ("--mode", "none")),
        ((*EVAL, "--samples", "0"), ("--samples", "0")),
        ((*EVAL, "--samples", "x"), ("--samples", "integer")),
        ((*EVAL, "--output", "taken"), ("--output", "taken")),
        ((*EVAL, "--output", "nowhere"), ("--output", "nowhere")),
        ((*EVAL, "--output", "r.yaml/out"), ("--output", "r.yaml")),
        ((*EVAL, "--output", "out", "--resume"), ("--resume", "out")),
        ((*EVAL, "--output", "taken", "--resume"), ("--resume", "taken")),
        ((*EVAL, "--base-url", "http://127.0.0.1:9/v1"), ("--model",)),
        ((*EVAL, "--base-url", "ftp://x/v1", "--model", "m"), ("--base-url", "ftp://x/v1")),
        ((*EVAL, "--api-key-env", "X"), ("--api-key-env", "--base-url")),
        (
            (*EVAL, "--base-url", "http://x/v1", "--model", "m", "--api-key-env", "NO_SUCH_VARIABLE"),
            ("NO_SUCH_VARIABLE",),
        ),
        ((*EVAL, "--model", "hollow"), ("hollow",)),
        ((*EVAL, "--model", "no_model"), ("no_model",)),
        ((*EVAL, "episode.max_turns=0"), ("episode.max_turns", "0")),
        (("eval", "offline", "limit=0", "--model", "m"), ("limit", "0")),
        (("eval", "offline", "limt=5", "--model", "m"), ("limt",)),
    ]


def _compare() -> list[Row]:
    return [
        (("compare",), ("RUN RUN",)),
        (("compare", "trained"), ("1 run",)),
        (("compare", "missing", "hollow"), ("missing",)),
        (("compare", "hollow", "hollow"), ("hollow",)),
        (("compare", "trained", "trained"), ("trained", "training run", "sandbox-rl eval")),
        (("compare", "broken_run", "trained"), ("broken_run",)),
        (("compare", "r.yaml", "trained"), ("r.yaml",)),
        (("compare", "trained", "trained", "--output", "page.md"), ("--output", "page.md", "exists already")),
        (("compare", "trained", "trained", "--output", "nowhere"), ("--output", "nowhere")),
        (("compare", "trained", "trained", "--output", "r.yaml/p.md"), ("--output", "r.yaml")),
    ]


def _check() -> list[Row]:
    return [
        (("check",), ("RUN",)),
        (("check", "missing"), ("missing", "no such file")),
        (("check", "r.yaml"), ("r.yaml/recipe.yaml",)),
        (("check", "hollow"), ("hollow/recipe.yaml", "a run's directory")),
        (("check", "trained"), ("trained/ledger.jsonl",)),
        (("check", "broken_run"), ("broken_run/ledger.jsonl",)),
    ]


def _look() -> list[Row]:
    rows: list[Row] = [
        (("view",), ("RUN",)),
        (("view", "missing"), ("missing", "no such directory")),
        (("view", "hollow"), ("hollow", "no run")),
        (("view", "hollow", "--port", "x"), ("--port",)),
        (("show", "missing"), ("missing", "no such directory")),
        (("show", "hollow"), ("hollow", "no run")),
        (("tokens", "hollow"), ("EPISODE",)),
        (("tokens", "hollow", "x"), ("hollow", "no run")),
        (("export-episodes", "hollow", "out.jsonl"), ("hollow", "no run")),
        (("export-episodes", "hollow", "out.jsonl", "--format", "zip"), ("'zip'", "harbor")),
        (("doctor", "--speed"), ("--speed",)),
        (("init",), ("ROWS",)),
        (("init", "missing.jsonl"), ("missing.jsonl", "does not exist")),
        (("init", "r.yaml"), ("r.yaml", ".jsonl")),
        (("init", "missing.jsonl", "-o", "r.yaml"), ("--output", "r.yaml", "exists already")),
        (("init", "missing.jsonl", "-o", "nowhere/r2.yaml"), ("--output", "nowhere")),
    ]
    return rows


def _run() -> list[Row]:
    return [
        (("run",), ("QUESTION",)),
        (("run", ""), ("QUESTION",)),
        ((*RUN, "--base-url", "http://127.0.0.1:9/v1"), ("--model",)),
        ((*RUN, "--base-url", "nonsense", "--model", "m"), ("--base-url", "nonsense")),
        ((*RUN, "--model", "hollow"), ("hollow",)),
        ((*RUN, "--model", "no_model"), ("no_model",)),
        ((*RUN, "--model", "m", "--base-url", "http://x/v1", "--input", "missing"), ("--input", "missing")),
        ((*RUN, "--model", "m", "--base-url", "http://x/v1", "--output", "r.yaml/x"), ("--output", "r.yaml")),
        ((*RUN, "--model", "m", "--base-url", "http://x/v1", "--output", "r.yaml"), ("--output", "r.yaml")),
        ((*RUN, "--model", "m", "--base-url", "http://x/v1", "--output", "nowhere"), ("--output", "nowhere")),
        ((*RUN, "--model", "m", "--base-url", "http://x/v1", "--domain", "cookery"), ("cookery",)),
        ((*RUN, "--model", "m", "--base-url", "http://x/v1", "--network", "bad host!"), ("bad host!",)),
        ((*RUN, "--recipe", "missing.yaml"), ("missing.yaml",)),
        ((*RUN, "--model", "m", "--base-url", "http://x/v1", "episode.max_turns=0"), ("max_turns", "0")),
        ((*RUN, "--model", "m", "--base-url", "http://x/v1", "nonsense"), ("nonsense",)),
    ]


def _sandboxes() -> list[Row]:
    return [
        (("fetch-model",), ("NAME",)),
        (("fetch-model", "gpt-5"), ("'gpt-5'", "smollm2-135m")),
        (("fetch-model", "smollm2-135m", "--to", "taken"), ("--to", "taken", "exists already")),
        (("fetch-model", "smollm2-135m", "--to", "nowhere"), ("--to", "nowhere")),
        (("self-check", "--backend", "vm"), ("vm",)),
        (("self-check", "--cases", "ZZZ"), ("--cases", "ZZZ")),
        (("self-check", "nonsense"), ("nonsense",)),
        (("self-check", "limits={memory_mb: 1}"), ("memory_mb", "1")),
        (("self-check", "bwrap=/no/bwrap"), ("/no/bwrap",)),
        (("self-check", "colour=red"), ("colour", "allowlist")),
        (("self-check", "limits.memory_mb=1"), ("limits.memory_mb=1", "at least 16")),
        (("self-check", "limits.memory=256"), ("limits.memory", "memory_mb")),
        (("self-check", "limits.pids=many"), ("limits.pids", "'many'")),
        (("self-check", "limits={processes: [}"), ("limits",)),
        (("python-env", "env", "--requirements", "missing.txt"), ("--requirements", "missing.txt")),
        (("image", "paint"), ("paint",)),
        (("image", "build", "missing"), ("missing", "Dockerfile")),
        (("image", "build", "docker"), ("docker", "Dockerfile")),
        (("image", "load"), ("archive",)),
        (("image", "load", "missing.tar"), ("missing.tar",)),
        (("image", "load", "hollow"), ("hollow",)),
        (("image", "load", "r.yaml", "--host", "nonsense"), ("nonsense",)),
        (("image", "load", "r.yaml", "--host", "tcp://127.0.0.1:9"), ("127.0.0.1:9",)),
        (("image", "load", "r.yaml", "--digest", "abc"), ("--digest", "abc")),
        (("image", "build", "--digest", "sha512:zz", "docker"), ("--digest", "sha512:zz")),
    ]
