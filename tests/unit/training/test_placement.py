"""Where servers go: by cards, processes, mode and the size of what is trained."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest

from sandbox_rl.config.recipe import Recipe
from sandbox_rl.errors import ConfigError
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.runs.division import Way
from sandbox_rl.runs.launch import Launch, way_asked
from sandbox_rl.runs.placement import serving_placement, training_placement
from sandbox_rl.training.config import ModelSettings
from sandbox_rl.training.memory import estimate_memory, kv_bytes_per_token, model_shape
from sandbox_rl.training.placement import GIB, Needs, fake_cards
from sandbox_rl.training.placement_plan import Training, check_training, plan_placement, plan_serving
from tests.unit.shapes import QWEN3_0_6B, QWEN3_4B, QWEN3_8B

MODELS = {"0.6B": QWEN3_0_6B, "4B": QWEN3_4B, "8B": QWEN3_8B}
H100, A10 = "NVIDIA H100 80GB", "NVIDIA A10 24GB"
TOKENS = 16_384


@cache
def shape_of(name: str):
    return model_shape(MODELS[name])


ARGS = SimpleNamespace(
    per_device_train_batch_size=1,
    gradient_checkpointing=True,
    use_cpu=False,
    optim="adamw",
    beta=0.0,
)


def needs_of(model: str, *, sharded: bool = True):
    """As `runs/placement.py` makes them: one row of 16k tokens, float32 masters, served in bfloat16."""
    shape = shape_of(model)

    def needs(ranks: int) -> Needs:
        memory = estimate_memory(
            shape,
            ARGS,
            ModelSettings(path="m", dtype="bfloat16"),
            prompt_tokens=1000,
            completion_tokens=TOKENS - 1000,
            sampled_rows=0,
            shards=ranks if sharded else 1,
        )
        longest = kv_bytes_per_token(shape, 2) * TOKENS
        return Needs(memory.training, memory.held, 2 * shape.parameters, longest)

    return needs


def plan(cards: str, ranks: int, model: str, mode: str = "sync", sharded: bool = True, **policy):
    settings, other = VLLMSettings(type="vllm", **policy), None if sharded else needs_of(model)
    needs = needs_of(model, sharded=sharded)
    return plan_placement(Training(fake_cards(cards), ranks, needs, mode, other), settings)


CASES = [
    # cards, processes, model, mode, policy → kind, servers, cards of each, transfer, asleep
    (f"1x {H100}", 1, "0.6B", "sync", {}, "one", 1, 1, "ipc", False),
    (f"1x {H100}", 1, "0.6B", "async", {}, "one", 1, 1, "ipc", False),
    (f"1x {H100}", 1, "0.6B", "sync", {"sleep": True}, "one", 1, 1, "ipc", True),
    (f"1x {A10}", 1, "0.6B", "async", {}, "one", 1, 1, "ipc", False),
    (f"1x {H100}", 1, "4B", "sync", {}, "one", 1, 1, "ipc", True),
    (f"2x {H100}", 1, "4B", "async", {"sleep": False}, "split", 1, 1, "nccl", False),
    (f"2x {H100}", 1, "0.6B", "sync", {"placement": "one"}, "one", 1, 1, "ipc", False),
    (f"2x {H100}", 2, "4B", "sync", {}, "shared", 2, 1, "ipc", False),
    (f"4x {H100}", 4, "4B", "sync", {}, "shared", 4, 1, "ipc", False),
    (f"4x {H100}", 2, "4B", "async", {}, "split", 2, 1, "nccl", False),
    (f"4x {H100}", 4, "8B", "async", {}, "shared", 4, 1, "ipc", False),
    (f"8x {H100}", 8, "8B", "sync", {}, "shared", 8, 1, "ipc", False),
    (f"8x {H100}", 4, "8B", "async", {}, "split", 4, 1, "nccl", False),
    (f"8x {H100}", 4, "8B", "sync", {"servers": 1}, "split", 1, 1, "nccl", False),
    (f"8x {H100}", 4, "8B", "sync", {"arguments": {"tensor_parallel_size": 2}}, "split", 2, 2, "nccl", False),
    (f"8x {H100}", 8, "4B", "sync", {"arguments": {"tensor-parallel-size": 4}}, "shared", 2, 4, "shm", False),
    (f"8x {H100}", 4, "8B", "sync", {"arguments": {"data_parallel_size": 2}}, "split", 2, 2, "nccl", False),
    (
        f"8x {H100}",
        4,
        "8B",
        "sync",
        {"arguments": {"pipeline-parallel-size": 4}},
        "split",
        1,
        4,
        "nccl",
        False,
    ),
    (f"4x {H100}", 2, "4B", "sync", {"transfer": "shm"}, "split", 2, 1, "shm", False),
    (f"8x {H100}", 8, "4B", "sync", {"servers": 2}, "shared", 2, 1, "shm", False),
    ("", 1, "4B", "sync", {}, "cpu", 1, 0, "shm", False),
    ("", 2, "4B", "async", {"servers": 2}, "cpu", 2, 0, "shm", False),
]


@pytest.mark.parametrize(
    ("cards", "ranks", "model", "mode", "policy", "kind", "servers", "of", "transfer", "asleep"), CASES
)
def test_what_is_planned(cards, ranks, model, mode, policy, kind, servers, of, transfer, asleep):
    found = plan(cards, ranks, model, mode, **policy)
    assert (found.kind, len(found.servers), found.transfer, found.sleep) == (kind, servers, transfer, asleep)
    assert {len(place.cards) for place in found.servers} == {of}
    serving = [card.id for place in found.servers for card in place.cards]
    training = [card.id for card in found.training]
    assert len(set(serving)) == len(serving), "no card has two servers"
    assert training == [str(number) for number in range(ranks if kind != "cpu" else 0)]
    if kind == "split":
        assert not set(serving) & set(training)
    elif transfer == "ipc":
        assert serving == training, "number i of the processes has server i on its card"


@pytest.mark.parametrize("case", [case for case in CASES if case[0]], ids=lambda case: str(case[:5]))
def test_what_is_planned_fits(case):
    """Trainer and server of a card together, at each moment."""
    cards, ranks, model, mode, policy = case[:5]
    found = plan(cards, ranks, model, mode, **policy)
    needs = needs_of(model)(ranks)
    memory = fake_cards(cards)[0].memory
    share = found.servers[0].share
    assert share is not None
    beside = 0 if found.kind == "split" else needs.held if found.sleep else needs.training
    assert share * memory + beside <= memory
    shards = VLLMSettings(type="vllm", **policy).shards
    assert needs.server(shards) <= share * memory + 0.01 * memory
    assert needs.training <= memory


@pytest.mark.parametrize(
    ("cards", "ranks", "model", "mode", "policy", "said"),
    [
        ("", 1, "4B", "sync", {"placement": "split"}, "'split', but no CUDA card is to be seen here"),
        ("", 1, "4B", "sync", {"transfer": "nccl"}, "policy.transfer: 'nccl', but there is no CUDA card"),
        (
            f"2x {H100}",
            4,
            "4B",
            "sync",
            {},
            "4 processes train, but 2 cards are to be seen.*processes=2",
        ),
        (
            f"4x {H100}",
            4,
            "4B",
            "sync",
            {"placement": "split"},
            "set launch.processes=2, .*shared",
        ),
        (
            f"1x {H100}",
            1,
            "4B",
            "sync",
            {"placement": "split"},
            "a second card, .*placement=one",
        ),
        (f"4x {H100}", 4, "4B", "sync", {"placement": "one"}, "'one', but 4 processes train"),
        (f"2x {H100}, 2x {A10}", 4, "0.6B", "sync", {}, r"0, 1: NVIDIA H100 80GB.*CUDA_VISIBLE_DEVICES=0,1"),
        (
            f"1x {H100}",
            1,
            "8B",
            "sync",
            {},
            "an update needs .* of 80.0 GiB; nothing fits: it takes",
        ),
        (f"1x {H100}", 1, "4B", "async", {}, "in mode: async none can sleep; .*'one' and mode: sync fits"),
        (f"1x {H100}", 1, "4B", "sync", {"sleep": False}, "'one' and policy.sleep=auto fits"),
        (
            f"4x {H100}",
            2,
            "4B",
            "sync",
            {"servers": 3},
            "3 servers .*'split' with policy.servers=auto",
        ),
        (
            f"4x {H100}",
            4,
            "4B",
            "sync",
            {"transfer": "nccl"},
            "'nccl' .* with policy.transfer=auto fits",
        ),
        (
            f"8x {H100}",
            4,
            "8B",
            "async",
            {"placement": "split", "transfer": "ipc"},
            "'ipc' needs a server",
        ),
        (
            f"2x {H100}",
            1,
            "4B",
            "sync",
            {"environment": {"CUDA_VISIBLE_DEVICES": "1"}, "servers": 2},
            "expected one of the two",
        ),
        (
            f"2x {H100}",
            2,
            "4B",
            "sync",
            {"environment": {"CUDA_VISIBLE_DEVICES": "1"}},
            "card 1 trains too, and a server takes 90% .*utilization=0.* or less, or leave the variable out",
        ),
        (
            f"2x {H100}",
            1,
            "4B",
            "sync",
            {"environment": {"CUDA_VISIBLE_DEVICES": "0"}},
            "card 0 trains too.*name another card .1.",
        ),
        (
            f"2x {H100}",
            2,
            "4B",
            "sync",
            {"arguments": {"gpu-memory-utilization": 0.9}},
            "72.0 GiB for a server beside .*gpu-memory-utilization left out fits",
        ),
        (
            f"4x {H100}",
            2,
            "4B",
            "async",
            {"arguments": {"gpu_memory_utilization": 0.1}, "placement": "split"},
            "gpu-memory-utilization 0.1 gives it 8.0 GiB; .*gpu-memory-utilization left out fits",
        ),
        (
            f"8x {H100}",
            8,
            "4B",
            "sync",
            {"arguments": {"kv-cache-memory-bytes": 70 * GIB}},
            "79.5 GiB for a server beside .*kv-cache-memory-bytes left out fits",
        ),
        (
            f"8x {H100}",
            8,
            "4B",
            "sync",
            {"arguments": {"tensor-parallel-size": 16}},
            "16 cards each cannot be placed on 8 cards.*'shared' with servers of one card each .* fits",
        ),
        (
            f"8x {H100}",
            1,
            "4B",
            "sync",
            {"placement": "split", "servers": 9},
            "9 servers cannot be placed on 7 cards",
        ),
        (
            f"4x {H100}",
            2,
            "4B",
            "sync",
            {"placement": "split", "sleep": True},
            "sleep: true gives nothing.*'split' and policy.sleep=auto fits",
        ),
        *(
            (
                f"4x {H100}",
                2,
                "4B",
                "sync",
                {"environment": {"CUDA_VISIBLE_DEVICES": named}, "arguments": arguments},
                rf"CUDA_VISIBLE_DEVICES='{named}', expected .*\(0, 1, 2, 3\); name such, or leave",
            )
            for named, arguments in [
                *((named, {}) for named in ("", "9", "3,3", "-1", ",", "a b")),
                ("3", {"tensor-parallel-size": 2}),
            ]
        ),
    ],
)
def test_what_is_refused_names_what_would_do(cards, ranks, model, mode, policy, said):
    with pytest.raises(ConfigError, match=said) as caught:
        plan(cards, ranks, model, mode, **policy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ranks", "policy", "said"),
    [
        (1, {"placement": "one"}, "'shared' with launch.processes=8 and launch.config=fsdp2 fits"),
        (8, {}, "'shared' and launch.config=fsdp2 fits"),
        (8, {"servers": 9}, "'shared' with policy.servers=auto and launch.config=fsdp2 fits"),
    ],
)
def test_a_model_that_fits_only_where_it_is_divided_is_refused_with_the_way_to_do_so(ranks, policy, said):
    with pytest.raises(ConfigError, match=f"(an update needs|9 servers) .* placement {said}$"):
        plan(f"8x {H100}", ranks, "8B", sharded=False, **policy)
    assert plan(f"8x {H100}", 8, "8B").kind == "shared", "which is so"


def planned_for(monkeypatch, cards: str, processes: int, **blocks) -> str:
    """What a recipe for an 8B model is told on these cards."""
    monkeypatch.setenv("SANDBOX_RL_FAKE_CARDS", cards)
    fixed = {
        "data": {"sources": [{"type": "table", "path": "rows.jsonl"}]},
        "model": {"path": "m", "dtype": "bfloat16"},
        "policy": {"type": "vllm"},
    }
    recipe = Recipe.model_validate(fixed | blocks)
    way = way_asked(recipe.launch) if processes > 1 else Way()  # one process has nothing to divide
    launch = Launch(processes, recipe.launch, None, way)
    model = SimpleNamespace(
        config=QWEN3_8B, longest_prompt=1000, context=TOKENS, longest=TOKENS, settings=recipe.model
    )
    with pytest.raises(ConfigError) as refused:
        training_placement(recipe, ARGS, model, launch=launch)
    return str(refused.value)


FSDP2, LORA, EXTERNAL = (
    {"config": "fsdp2"},
    {"path": "m", "dtype": "bfloat16", "lora": {}},
    {"type": "vllm", "engine": "external", "base_urls": ["http://one:1"]},
)
DIVIDED = "weights divided over more cards"


@pytest.mark.parametrize(
    ("cards", "processes", "blocks", "said"),
    [
        (f"8x {H100}", 8, {}, "'shared' and launch.config=fsdp2 fits"),
        (f"8x {H100}", 1, {"launch": FSDP2}, "'shared' with launch.processes=8 fits"),
        (f"8x {H100}", 2, {"launch": FSDP2}, "'shared' with launch.processes=8 fits"),
        (
            f"2x {A10}",
            2,
            {},
            f"or more, model.lora={{}}, shorter episodes, {DIVIDED} (launch.config=fsdp2) or an optimizer in "
            "the machine's memory (launch.config=zero3)",
        ),
        (
            f"2x {A10}",
            2,
            {"launch": FSDP2},
            f"shorter episodes, {DIVIDED} or an optimizer in the machine's memory (launch.config=zero3)",
        ),
        (
            f"1x {A10}",
            1,
            {"launch": FSDP2, "mode": "async"},
            f"model.lora={{}}, shorter episodes or {DIVIDED}",
        ),
        (
            f"2x {A10}",
            2,
            {"launch": FSDP2, "update": {"micro_batch_tokens": 64}},
            f"shorter episodes or {DIVIDED}",
        ),
        (f"1x {A10}", 1, {"model": LORA}, f"or more, shorter episodes or {DIVIDED} (launch.config=fsdp2)"),
        (
            f"2x {A10}",
            2,
            {"launch": FSDP2, "policy": EXTERNAL},
            f"model.lora={{}}, shorter episodes, {DIVIDED} or an optimizer in the machine's memory "
            "(launch.config=zero3)",
        ),
        (f"1x {A10}", 1, {"policy": {"type": "transformers"}}, "; model.lora={} or shorter episodes"),
    ],
)
def test_what_a_recipe_says_already_is_no_way_out(monkeypatch, cards, processes, blocks, said):
    """Nor what its mode, its policy or its cards do not allow."""
    assert planned_for(monkeypatch, cards, processes, **blocks).endswith(said)


def test_a_server_on_a_card_by_hand_stays_where_it_was_put():
    found = plan(f"2x {H100}", 1, "4B", environment={"CUDA_VISIBLE_DEVICES": "1"})
    assert (found.transfer, found.servers[0].cards) == ("shm", ())


def test_a_cache_that_the_recipe_sets_is_what_a_server_takes():
    """vLLM does not look at its share of the card then."""
    found = plan(f"2x {H100}", 2, "4B", arguments={"kv_cache_memory_bytes": 4 * GIB})
    assert [place.share for place in found.servers] == [pytest.approx(13.5 / 80, abs=0.01)] * 2
    assert found.kind == "shared"


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"arguments": {"tensor-parallel": 2}}, "a whole name: tensor-parallel-size"),
        ({"arguments": {"gpu_memory_util": 0.9}}, "a whole name: gpu-memory-utilization"),
        ({"arguments": {"worker-ext": "a.B"}}, "a whole name: worker-extension-cls"),
        ({"arguments": {"config": "own.yaml"}}, "write here what that file says"),
        ({"arguments": {"kv-cache-memory-bytes": "4G"}}, "expected a number of bytes"),
        (
            {"arguments": {"max-num-seqs": 4}, "base_urls": ["http://a:1"]},
            "expected none with engine 'external'",
        ),
        ({"environment": {"A": "b"}, "base_urls": ["http://a:1"]}, "expected none with engine 'external'"),
        ({"base_urls": ["http://a:1", "http://a:1"]}, "stands there twice"),
    ],
)
def test_settings_that_a_placement_would_not_see_are_refused(policy, said):
    """vLLM takes an argument by its beginning, and reads others from a file."""
    engine = {"engine": "external"} if "base_urls" in policy else {}
    with pytest.raises(ValueError, match=said):
        VLLMSettings(type="vllm", **engine, **policy)


def test_cards_that_do_not_divide_the_heads_are_refused_before_a_server_does_so(monkeypatch):
    monkeypatch.setenv("SANDBOX_RL_FAKE_CARDS", f"8x {H100}")
    policy = {"type": "vllm", "arguments": {"tensor-parallel-size": 3}}
    source = {"type": "table", "path": "rows.jsonl"}
    recipe = Recipe.model_validate({"data": {"sources": [source]}, "policy": policy})
    launch = Launch(8, recipe.launch, None)
    refused = r"3 does not divide the model's 32 attention heads, .* 1, 2, 4, 8"
    with pytest.raises(ConfigError, match=refused):
        training_placement(recipe, None, SimpleNamespace(config=QWEN3_4B), launch=launch)
    with pytest.raises(ConfigError, match=refused):  # as an evaluation asks
        serving_placement(recipe.policy, QWEN3_4B)


def test_a_share_that_the_recipe_sets_is_left_to_it():
    found = plan(f"2x {H100}", 2, "4B", arguments={"gpu_memory_utilization": 0.3})
    assert [place.share for place in found.servers] == [None, None]


def test_a_share_that_fits_only_while_the_trainer_is_idle_has_servers_sleep():
    assert not plan(f"2x {H100}", 2, "4B", arguments={"gpu-memory-utilization": 0.3}).sleep
    assert plan(f"2x {H100}", 2, "4B", arguments={"gpu-memory-utilization": 0.6}).sleep


def test_weights_that_no_card_holds_whole_beside_its_own_part_go_over_the_group_too():
    """They are gathered and sent in parts."""
    needs = Needs(training=60 * GIB, held=30 * GIB, weights=64 * GIB, longest=GIB)
    settings = VLLMSettings(type="vllm", arguments={"tensor-parallel-size": 4})
    found = plan_placement(Training(fake_cards(f"8x {H100}"), 4, lambda _: needs, "async"), settings)
    assert (found.kind, found.transfer) == ("split", "nccl")


def test_a_card_that_is_asked_for_holds_what_does_not_fit_here():
    """Trainer and server together, where there is no other card to serve."""

    def planned(memory: int) -> str:
        needs = Needs(training=11 * GIB, held=9 * GIB, weights=8 * GIB, longest=GIB)
        training = Training(fake_cards(f"1x Card {memory}GB"), 1, lambda _: needs, "sync")
        return str(plan_placement(training, VLLMSettings(type="vllm")))

    with pytest.raises(ConfigError, match=r"it takes cards of 22\.0 GiB or more"):
        planned(16)
    assert "sleeps during updates" in planned(22)


def test_cards_that_serve_nobody_of_ours_are_looked_at_too():
    """An external engine, or the trainer's own process, samples."""
    check_training(fake_cards(f"2x {H100}"), 60 * GIB, "less")
    with pytest.raises(ConfigError, match=r"an update needs 82.0 GiB on a card of 80.0 GiB; less$"):
        check_training(fake_cards(f"2x {H100}"), 80 * GIB, "less")
    with pytest.raises(ConfigError, match="cards of different kinds"):
        check_training(fake_cards(f"1x {H100}, 1x {A10}"), GIB, "less")


def test_the_number_of_servers_is_reported_or_left_open():
    assert [VLLMSettings(type="vllm", servers=n).servers for n in ("auto", 3)] == ["auto", 3]
    for wrong in (0, "many"):
        with pytest.raises(ValueError, match="servers"):
            VLLMSettings(type="vllm", servers=wrong)
    for wrong in (0, "2", True):
        with pytest.raises(ValueError, match="expected a number of cards"):
            VLLMSettings(type="vllm", arguments={"tensor_parallel_size": wrong})
    for wrong in (0, 1.5, "half", True):
        with pytest.raises(ValueError, match="expected a number above 0"):
            VLLMSettings(type="vllm", arguments={"gpu-memory-utilization": wrong})
    with pytest.raises(ValueError, match="see base_urls"):
        VLLMSettings(type="vllm", engine="external", base_urls=("http://a:1",), servers=2)


def test_an_evaluation_serves_on_all_cards():
    settings = VLLMSettings(type="vllm", arguments={"tensor-parallel-size": 2})
    assert len(plan_serving(fake_cards(f"4x {H100}"), settings).servers) == 2
    trains = VLLMSettings(type="vllm", placement="split", transfer="nccl")
    assert plan_serving((), trains).kind == "cpu"
    with pytest.raises(ConfigError, match="expected 2"):
        plan_serving(fake_cards(f"1x {H100}"), settings)


def test_one_line_says_where_everything_runs():
    assert str(plan(f"8x {H100}", 8, "8B")) == (
        "shared: 8 x NVIDIA H100 80GB train (31.9 of 80 GiB) with 8 servers on them, 57% of each for a "
        "server; weights by ipc"
    )
    assert str(plan("", 1, "4B", servers=2)) == "2 servers on the CPU; weights by shm"


def test_made_up_cards_are_read_or_refused():
    cards = fake_cards("2x NVIDIA H100 80GB, 1x L4 24 GB")
    assert [(card.id, card.name) for card in cards] == [
        ("0", "NVIDIA H100 80GB"),
        ("1", "NVIDIA H100 80GB"),
        ("2", "L4 24GB"),
    ]
    for text in ("H100", "0x H100 80GB", "8x H100 0GB", "99999x H100 80GB", "-1x H100 80GB"):
        with pytest.raises(ConfigError, match=f"'{text}', expected a number, a name and the memory"):
            fake_cards(text)
