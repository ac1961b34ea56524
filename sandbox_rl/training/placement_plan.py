"""Plans which cards train and which serve, before anything starts, from what a run needs on a card.

Arithmetic on sizes in bytes: no device is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sandbox_rl.errors import ConfigError
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.training.placement import (
    LARGEST_SHARE,
    RESERVE,
    Card,
    Kind,
    Needs,
    Place,
    Placement,
    plain,
    refuse_mixed,
    size_of,
)
from sandbox_rl.training.placement_by_hand import by_hand, refuse_crowded, unplanned_transfer

Mode = Literal["sync", "async"]


@dataclass(frozen=True, slots=True)
class Training:
    """What trains on this machine, and has to have a place beside servers.

    Args:
        cards: that this run may use, in the order of their local rank.
        ranks: processes that train; number i on card i.
        needs: by how many processes train.
        divided: the same where they divide the model; None where they cannot.
        dividing: what it takes to have several divide it: `launch.config=…`, or nothing where they would.
        smaller: what would make an update take less of a card.
    """

    cards: Sequence[Card]
    ranks: int
    needs: Callable[[int], Needs]
    mode: Mode
    divided: Callable[[int], Needs] | None = None
    dividing: str = "launch.config=fsdp2"
    smaller: str = "shorter episodes"


def plan_placement(training: Training, settings: VLLMSettings) -> Placement:
    """Plan managed servers beside the processes that train on this machine.

    Raises:
        ConfigError: what is asked for is not there or does not fit; names the nearest that does.
    """
    cards, ranks = training.cards, training.ranks
    if not cards:
        return _on_cpu(settings)
    refuse_mixed(cards)
    if ranks > len(cards):
        raise ConfigError(
            f"policy.placement: {ranks} processes train, but {plain(len(cards))} "
            f"{'is' if len(cards) == 1 else 'are'} to be seen, expected one for each; set "
            f"launch.processes={len(cards)}, or see CUDA_VISIBLE_DEVICES"
        )
    if "CUDA_VISIBLE_DEVICES" in settings.environment:
        placed = by_hand(cards, ranks, settings)
        refuse_crowded(cards, ranks, settings, training.needs(ranks), placed.sleep)
        return placed
    why = ""
    for kind in _kinds(settings, ranks, len(cards)):
        found = _fitting(kind, training, settings)
        if isinstance(found, Placement):
            return found
        why = why or found
    raise ConfigError(f"policy.placement: {why}; {_nearest(training, settings)}")


def check_training(cards: Sequence[Card], training: int, smaller: str) -> None:
    """Where no server of ours needs a place.

    Args:
        cards: that train.
        training: bytes that an update takes on each.
        smaller: what would make it take less.

    Raises:
        ConfigError: an update does not fit, or they are of several kinds.
    """
    refuse_mixed(cards)
    if training + RESERVE > cards[0].memory:
        raise ConfigError(
            f"model.path: an update needs {size_of(training + RESERVE)} on a card of "
            f"{size_of(cards[0].memory)}; {smaller}"
        )


def plan_serving(cards: Sequence[Card], settings: VLLMSettings) -> Placement:
    """Plan servers where nothing is trained, as for an evaluation: on all cards, whatever a training run
    of the same recipe would do.

    Raises:
        ConfigError: more are asked for than the cards hold.
    """
    settings = settings.model_copy(update={"placement": "auto", "transfer": "auto"})
    if not cards:
        return _on_cpu(settings)
    refuse_mixed(cards)
    if "CUDA_VISIBLE_DEVICES" in settings.environment:
        return by_hand(cards, 0, settings)
    places = _places(cards, settings, None)
    if isinstance(places, str):
        raise ConfigError(f"policy.servers: {places}")
    return Placement("split", (), places, "shm")


def _kinds(settings: VLLMSettings, ranks: int, cards: int) -> list[Kind]:
    """What may be tried, the best first."""
    together: Kind = "one" if ranks == 1 else "shared"
    if settings.placement == "auto":
        return ["split", together] if cards > ranks else [together]
    if settings.placement == "one" and ranks > 1:
        raise ConfigError(
            f"policy.placement: 'one', but {ranks} processes train, expected one; set launch.processes=1, or "
            "policy.placement=shared"
        )
    if settings.placement == "split":
        if cards > ranks:
            return ["split"]
        other = f"set launch.processes={cards // 2}" if ranks > 1 else "give it a second card"
        raise ConfigError(
            f"policy.placement: 'split', but {ranks} of {plain(cards)} train and none is left to serve; "
            f"{other}, or set policy.placement={together}"
        )
    return [together]


def _fitting(kind: Kind, training: Training, settings: VLLMSettings) -> Placement | str:
    """The placement of this kind, or why there is none."""
    cards, ranks, needs = training.cards, training.ranks, training.needs(training.ranks)
    own, memory = tuple(cards[:ranks]), cards[0].memory
    serving = cards[ranks:] if kind == "split" else own
    server, given = needs.server(settings.shards, settings.cache), settings.share
    if isinstance(places := _places(serving, settings, None), str):
        return places
    if kind == "split" and settings.sleep is True:
        return "'split' gives servers cards of their own, on which sleep: true gives nothing to anybody"
    if needs.training + RESERVE > memory:
        return f"an update needs {size_of(needs.training + RESERVE)} on a card of {size_of(memory)}"
    if settings.cache is not None:
        given = None  # vLLM does not look at it then
    if given is not None and server > given * memory:
        return (
            f"a server needs {size_of(server)}, and gpu-memory-utilization {given:g} gives it "
            f"{size_of(given * memory)}"
        )
    sleep = False
    if kind == "split":
        share = given or LARGEST_SHARE
        if server > share * memory:
            return f"a server needs {size_of(server)} on a card of {size_of(memory)}"
    else:
        server = max(server, int((given or 0) * memory))  # it takes all that it is given
        free = memory - RESERVE - needs.training
        sleep = settings.sleep is True or (server > free and settings.sleep == "auto")
        if sleep:
            free = memory - RESERVE - needs.held
        if server > free:
            return (
                f"{kind!r} needs {size_of(server)} for a server beside {size_of(memory - free)} of the "
                f"trainer's on a card of {size_of(memory)}"
            )
        if sleep and training.mode == "async":
            return (
                f"{kind!r} needs {size_of(needs.training + RESERVE + server)} for trainer and server "
                f"together on a card of {size_of(memory)}, and in mode: async none can sleep"
            )
        share = min(LARGEST_SHARE, int(100 * free / memory) / 100)
    if settings.cache is not None:
        share = math.ceil(100 * server / memory) / 100
    places = tuple(Place(place.cards, None if given else share) for place in places)
    each = kind != "split" and settings.cards_each == 1 and len(places) == ranks
    transfer = settings.transfer
    if transfer == "auto":
        transfer = "ipc" if each else "nccl" if kind == "split" else "shm"
    if transfer == "ipc" and not each:
        return "transfer 'ipc' needs a server on each card that trains, and no other"
    if transfer == "nccl" and kind != "split":
        return f"transfer 'nccl' cannot reach a server on the trainer's own card ({kind!r}); set ipc or shm"
    return Placement(kind, own, places, transfer, sleep, needs.training)


def _places(cards: Sequence[Card], settings: VLLMSettings, share: float | None) -> tuple[Place, ...] | str:
    """One server on each group of cards, or why they are too few."""
    each = settings.cards_each
    if settings.share is not None:
        share = None
    count = len(cards) // each if settings.servers == "auto" else settings.servers
    if count < 1 or count * each > len(cards):
        groups = f" of {each} cards each" if each > 1 else ""
        what = f"{max(count, 1)} server{'s' if count > 1 else ''}{groups}"
        return f"{what} cannot be placed on {plain(len(cards))}, expected {max(count, 1) * each}"
    return tuple(Place(tuple(cards[number * each : (number + 1) * each]), share) for number in range(count))


def _nearest(training: Training, settings: VLLMSettings) -> str:
    """What would fit, as the change that it takes: the model whole with fewer processes, or else divided."""
    reset = [f"policy.{name}=auto" for name in ("servers", "transfer") if getattr(settings, name) != "auto"]
    for name, value in (
        ("gpu-memory-utilization", settings.share),
        ("kv-cache-memory-bytes", settings.cache),
    ):
        reset += [f"policy.arguments.{name} left out"] * (value is not None)
    for free in (settings.without_sizes(), settings.without_sizes(also=True)):
        also = f" with {' and '.join(reset)}" if reset else ""
        if found := _first_that_fits(training, free, also):
            return found
        if settings.cards_each == 1:
            break
        reset += ["servers of one card each (policy.arguments)"]
    least = training.needs(training.ranks)
    beside = least.training if training.mode == "async" else least.held
    if len(training.cards) > training.ranks:
        beside = 0
    size = RESERVE + max(least.training, beside + least.server(settings.shards))
    return f"nothing fits: it takes cards of {size_of(size)} or more, {training.smaller}"


def _first_that_fits(training: Training, free: VLLMSettings, also: str) -> str | None:
    """By placement, processes and division; as the change that it takes beside `also`."""
    cards, ranks = len(training.cards), training.ranks
    ways = [(replace(training, ranks=count), "") for count in range(ranks, 0, -1)]
    if training.divided is not None:
        divided = replace(training, needs=training.divided)
        more = f" and {training.dividing}" if training.dividing else ""
        ways += [(replace(divided, ranks=count), more) for count in range(cards, 1, -1)]
    for way, config in ways:
        for kind in _kinds(free, way.ranks, cards):
            for settings, mode, other in _mode_and_sleep(free, training.mode):
                if isinstance(_fitting(kind, replace(way, mode=mode), settings), Placement):
                    train = f" with launch.processes={way.ranks}" if way.ranks != ranks else ""
                    return f"placement {kind!r}{also}{train}{config}{other} fits"
    return None


def _mode_and_sleep(settings: VLLMSettings, mode: Mode) -> list[tuple[VLLMSettings, Mode, str]]:
    asleep = settings.model_copy(update={"sleep": "auto"})
    found: list[tuple[VLLMSettings, Mode, str]] = [(settings, mode, "")]
    if settings.sleep != "auto":
        found.append((asleep, mode, " and policy.sleep=auto"))
    if mode == "async":
        found.append((asleep, "sync", " and mode: sync"))
    return found


def _on_cpu(settings: VLLMSettings) -> Placement:
    if settings.placement != "auto":
        raise ConfigError(
            f"policy.placement: {settings.placement!r}, but no CUDA card is to be seen here, expected one at "
            "least; leave it out to serve on the CPU, or see `nvidia-smi` and CUDA_VISIBLE_DEVICES"
        )
    transfer = unplanned_transfer(settings, cards=False)
    count = 1 if settings.servers == "auto" else settings.servers
    return Placement("cpu", (), (Place(),) * count, transfer, settings.sleep is True)
