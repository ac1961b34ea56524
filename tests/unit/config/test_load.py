"""A recipe that is wrong is one line: where, which key, what was expected."""

from __future__ import annotations

import pytest

from sandbox_rl.config.load import load_block, load_recipe
from sandbox_rl.config.recipe import Recipe, resolved
from sandbox_rl.config.run import RunSettings
from sandbox_rl.config.suite import Suite
from sandbox_rl.errors import ConfigError
from sandbox_rl.sandboxes.base import SandboxLimits
from sandbox_rl.sandboxes.config import SandboxSettings
from sandbox_rl.training.config import EvaluationSettings

BASE = """\
name: r
data:
  sources:
    - {type: reasoning_gym, dataset: chain_sum, size: 20}
grpo:
  learning_rate: 1e-6
"""


@pytest.fixture
def write(tmp_path):
    def written(text):
        path = tmp_path / "r.yaml"
        path.write_text(text)
        return path

    return written


def refusal(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_number_with_an_exponent_is_a_number(write):
    assert load_recipe(write(BASE)).grpo["learning_rate"] == 1e-6
    assert load_recipe(write(BASE), ["grpo.learning_rate=5E-7"]).grpo["learning_rate"] == 5e-7
    assert load_recipe(write(BASE), ["grpo.learning_rate=-2.e+3"]).grpo["learning_rate"] == -2000


def test_the_resolved_recipe_is_the_same_recipe(write, tmp_path):
    recipe = load_recipe(write(BASE), ["model.lora={r: 4}", "curriculum.domain_weights={general: 1}"])
    again = tmp_path / "again.yaml"
    again.write_text(resolved(recipe))
    assert load_recipe(again) == recipe


@pytest.mark.parametrize(
    ("override", "look"),
    [
        ("seed=7", lambda r: r.seed == 7),
        ("data.sources.0.size=50", lambda r: r.data.sources[0].size == 50),
        ("data.sources.0.params={min_terms: 2}", lambda r: r.data.sources[0].params == {"min_terms": 2}),
        ("warmup.sft.max_steps=3", lambda r: r.warmup.sft == {"max_steps": 3}),
        ("report_to=[wandb, trackio]", lambda r: r.report_to == ("wandb", "trackio")),
        ("model.lora.r=4", lambda r: r.model.lora.r == 4),
        ("model.revision=null", lambda r: r.model.revision is None),
        ("model.path=a=b", lambda r: r.model.path == "a=b"),
        ("grpo.adam_beta2=.95", lambda r: r.grpo["adam_beta2"] == 0.95),
    ],
)
def test_overrides_reach_everything(write, override, look):
    assert look(load_recipe(write(BASE), [override]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            BASE + "episode: {max_turn: 3}\n",
            "r.yaml:7: unknown key 'episode.max_turn', did you mean 'max_turns'?",
        ),
        (BASE + "curiculum: {}\n", "r.yaml:7: unknown key 'curiculum', did you mean 'curriculum'?"),
        (BASE + "episode:\n  max_turns: many\n", "r.yaml:8: key 'episode.max_turns': 'many'"),
        (BASE + "seed: -1\n", "r.yaml:7: key 'seed': -1"),
        (BASE + "name: twice\n", "r.yaml:7: key 'name' is given twice, first at "),
        (
            BASE + "policy: {type: vlm}\n",
            "'policy.type': policy engine 'vlm' is unknown: did you mean 'vllm'?",
        ),
        (BASE + "name2: [\n", "not valid YAML"),
        (BASE.replace("name: r", "name: ../up"), "r.yaml:1: key 'name': '../up', expected letters"),
        (
            BASE.replace("reasoning_gym", "gym"),
            "'data.sources.0.type': task source 'gym' is unknown: expected one of 'reasoning_gym'",
        ),
        (
            BASE.replace("type: reasoning_gym, ", ""),
            "r.yaml:4: key 'data.sources.0.type' is missing; add it, one of 'reasoning_gym'",
        ),
        (BASE.replace("dataset: chain_sum, ", ""), "r.yaml:4: key 'data.sources.0.dataset' is missing"),
        (BASE.replace("size: 20", "sizes: 20"), "unknown key 'data.sources.0.sizes', did you mean 'size'?"),
        (BASE.replace("size: 20", "size: 0"), "r.yaml:4: key 'data.sources.0.size': 0"),
        ("name: r\n", "key 'data' is missing"),
        ("- a\n- b\n", "a recipe is a mapping of keys to values, got list"),
        ("", "a recipe is a mapping of keys to values, got NoneType"),
        (BASE + "sandbox: {limits: {memory_mb: -5}}\n", "memory_mb: -5, expected a number above 0"),
        (BASE + "curriculum: {domain_weights: {math: -1}}\n", "curriculum.domain_weights.math': -1"),
    ],
)
def test_each_mistake_is_named_with_its_place(write, text, expected):
    assert expected in refusal(write(text))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "override 'seed': expected key=value"),
        ("=3", "expected key=value"),
        (
            "data.sources.3.size=1",
            "data.sources is a list of 1, expected an index from 0 to 0 instead of '3'",
        ),
        ("data.sources.x.size=1", "instead of 'x'"),
        ("seed=[1", "is not a YAML value"),
        ("sed=3", "override 'sed=3': unknown key 'sed', did you mean 'seed'?"),
        ("episode.max_turns=0", "override 'episode.max_turns=0': key 'episode.max_turns': 0"),
        ("model.lora.rank=4", "unknown key 'model.lora.rank'"),
    ],
)
def test_a_wrong_override_is_quoted(write, override, expected):
    assert expected in refusal(write(BASE), override)


def test_both_lines_of_a_doubled_key_are_named(write):
    message = refusal(write(BASE + "  beta: 0\n  learning_rate: 2\n"))
    assert "r.yaml:8" in message
    assert "r.yaml:6" in message


def test_a_file_that_cannot_be_read(tmp_path):
    assert "cannot be read" in refusal(tmp_path / "missing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(tmp_path / "binary.yaml")


def test_a_block_is_set_from_the_command_line_alone():
    """As `self-check` does it: the same keys with dots, without the block's own name."""
    block = load_block(SandboxSettings, {"type": "embedded"}, ["limits.memory_mb=256", "limits.pids=64"])
    assert (block.limits.memory_mb, block.limits.pids) == (256, 64)
    assert block.limits.disk_mb == SandboxLimits().disk_mb
    with pytest.raises(ConfigError, match=r"override 'limits.pids=many': key 'limits.pids': 'many'"):
        load_block(SandboxSettings, {"type": "embedded"}, ["limits.pids=many"])


def test_a_recipe_and_a_suite_have_the_same_blocks():
    """What episodes depend on has one name, one default and one meaning in both."""
    shared = set(RunSettings.model_fields)
    assert shared <= Recipe.model_fields.keys()
    assert shared <= Suite.model_fields.keys()
    for name in shared - {"name"}:
        mine, theirs = Recipe.model_fields[name], Suite.model_fields[name]
        assert (mine.annotation, mine.default) == (theirs.annotation, theirs.default)
    assert Suite.model_fields["sampling"].annotation is EvaluationSettings.model_fields["sampling"].annotation
