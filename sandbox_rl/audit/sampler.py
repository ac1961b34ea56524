"""Do sampler and trainer agree about the tokens that were sampled? If not, why not.

A sampler's log-probs are of the distribution that a token was drawn from; the trainer's own must be of the
same one, or ratios, clips and corrections are about another policy than the one that acted.

Do published weights act? Checksums prove that bytes arrived. They do not prove that the server computes with
them: a head tied to an embedding may be a stale copy, adapters may lie beside the weights unused, a sleeping
server may have woken with what it loaded at its start. So every n-th publication a probe is scored on every
server before and after it, and by the trainer: as its weights are, as they were at earlier probes, without
the adapters, and with the head of the beginning. Where the servers agree with one of these better than with
the present weights, that is the cause.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from sandbox_rl.audit.alarms import AlarmName, Alarms

CLEAR = 0.5
"""A cause is named when the gap under it is less than this part of the present one."""

EVERY = 10
"""Steps between two searches for the cause of a gap that goes on."""


class SamplerCause(StrEnum):
    """Why, as a sentence."""

    TEMPERATURE = (
        "the sampler's log-probs are without the temperature (a server needs --logprobs-mode "
        "processed_logprobs)"
    )
    TRUNCATION = (
        "the sampler drew from a truncated distribution (top_p, top_k, min_p); training samples the whole one"
    )
    ADAPTER = "the sampler computes without the adapters: they were never delivered or not applied"
    PRECISION = "sampler and trainer compute in different precisions"
    UNKNOWN = (
        "the sampler holds other weights (an earlier version?), or sees other tokens, or reads the model's "
        "configuration in another way"
    )


class SamplerAudit:
    """Watches the gap between sampled and trainer's log-probs.

    Args:
        ceiling: mean gap in nats per token that is an alarm.
    """

    def __init__(self, alarms: Alarms, *, ceiling: float) -> None:
        self._alarms = alarms
        self._ceiling = ceiling
        self.searched = -EVERY
        """The step of the last search for a cause."""

    def look(self, gap: float, step: int, gaps: Callable[[], Mapping[SamplerCause, float]]) -> None:
        """Judge a micro-batch.

        Args:
            gap: mean |trainer - sampler| in nats per sampled token.
            gaps: the same of the worst row under each cause, and under UNKNOWN as things are; costs a
                forward pass and is asked for now and then only.
        """
        if gap <= self._ceiling or step - self.searched < EVERY:
            return
        self.searched = step
        found = dict(gaps())
        present = found.pop(SamplerCause.UNKNOWN, gap)
        cause = min(found, key=lambda c: found[c], default=SamplerCause.UNKNOWN)
        if found.get(cause, present) >= CLEAR * present:
            cause = SamplerCause.UNKNOWN
        self._alarms.sound(
            step,
            AlarmName.SAMPLER_DIFFERS,
            f"sampler and trainer differ by {gap:.3g} nats per sampled token (alarm at "
            f"{self._ceiling:g}): {cause.value}",
        )

    def look_old(self, gap: float, step: int) -> None:
        """Judge the log-probs that ratios are formed with, where weights are still those of the sampling.

        Args:
            gap: mean |present - old| in nats per token, expected to be rounding.
        """
        if gap > self._ceiling:
            self._alarms.sound(
                step,
                AlarmName.OLD_LOG_PROBS,
                f"the old log-probs differ from the present ones by {gap:.3g} nats per token before any "
                "update has happened in between: they are of other weights or other rows",
            )


LogProbs = Sequence[float]
"""Natural-log probability of each token of the probe but the first."""

KEPT = 64
"""Earlier probes that are remembered; the first one always is."""

FLOOR = 3.0
"""Gaps up to this many times the first one are rounding."""

SMALLEST = 1e-4
"""Nats per token below which nothing is worth an alarm."""


class Cause(StrEnum):
    """Why servers and trainer disagree about fixed tokens, as a sentence."""

    STALE = "the servers compute with the weights of an earlier version: the publication had no effect"
    FIRST = "the servers compute with the weights that the run began with"
    ADAPTER = "the servers compute without the adapters: they were never delivered or not applied"
    HEAD = "the servers' head is the one of the beginning: a head tied to the embedding was not renewed"
    UNKNOWN = (
        "no known cause: other weights, another attention kernel or precision, or another reading of the "
        "model's configuration"
    )


@dataclass(frozen=True, slots=True)
class TrainerScores:
    """Log-probs of the probe by the trainer.

    Args:
        present: with its weights as they are.
        without_adapters: where it has some.
        first_head: with the head that the run began with, where that is tied to the embedding.
    """

    present: LogProbs
    without_adapters: LogProbs | None = None
    first_head: LogProbs | None = None


class PublicationAudit:
    """Compares servers and trainer at every n-th publication; on the main process.

    Args:
        ceiling: mean gap in nats per token that is an alarm whatever the first one was.
        every: publications from one probe to the next.
    """

    def __init__(self, alarms: Alarms, *, ceiling: float, every: int = 10) -> None:
        self._alarms = alarms
        self._ceiling = ceiling
        self._every = every
        self._count = 0
        self._first_gap: float | None = None
        self._history: dict[int, LogProbs] = {}
        self._metrics: dict[str, float] = {}

    def due(self) -> bool:
        """Whether the next publication is one to look at; counts it. The first ones always are: a delivery
        that never worked shows there."""
        self._count += 1
        return self._count <= 3 or self._count % self._every == 0

    def take(self) -> dict[str, float]:
        """`publication/gap`, `…/moved` (by the trainer since the probe before) and `…/served_moved`."""
        metrics, self._metrics = self._metrics, {}
        return metrics

    def look(
        self, version: int, before: Sequence[LogProbs], after: Sequence[LogProbs], ours: TrainerScores
    ) -> Cause | None:
        """Judge one publication.

        Args:
            version: updates that the published weights have received.
            before, after: by each server, before and after the publication.

        Returns:
            The cause that an alarm was sounded with.
        """
        gaps = [_gap(served, ours.present) for served in after]
        gap = max(gaps)
        served = after[gaps.index(gap)]
        last = self._history[max(self._history)] if self._history else ours.present
        self._metrics = {
            "publication/gap": gap,
            "publication/moved": _gap(last, ours.present),
            "publication/served_moved": max(_gap(b, a) for b, a in zip(before, after, strict=True)),
        }
        found = self._cause(version, gap, served, ours)
        self._remember(version, ours.present, gap)
        if found is not None:
            cause, detail = found
            self._alarms.sound(
                version,
                AlarmName.SAMPLER_DIFFERS,
                f"servers and trainer differ by {gap:.3g} nats per token on fixed tokens after a "
                f"publication; {cause.value}{detail}",
            )
            return cause
        return None

    def _cause(
        self, version: int, gap: float, served: LogProbs, ours: TrainerScores
    ) -> tuple[Cause, str] | None:
        rounding = max(SMALLEST, FLOOR * (self._first_gap or 0.0))
        if gap <= rounding and self._first_gap is not None:
            return None
        candidates: list[tuple[float, Cause, str]] = []
        if ours.without_adapters is not None:
            candidates.append((_gap(served, ours.without_adapters), Cause.ADAPTER, ""))
        if ours.first_head is not None:
            candidates.append((_gap(served, ours.first_head), Cause.HEAD, ""))
        for number, scores in self._history.items():
            if number == version:
                continue
            cause = Cause.FIRST if number == min(self._history) else Cause.STALE
            candidates.append((_gap(served, scores), cause, f" (version {number})"))
        best = min(candidates, key=lambda candidate: candidate[0], default=None)
        if best is not None and best[0] < CLEAR * gap and gap > rounding:
            return best[1], best[2]
        return (Cause.UNKNOWN, "") if gap > self._ceiling else None

    def _remember(self, version: int, scores: LogProbs, gap: float) -> None:
        if self._first_gap is None and gap <= self._ceiling:
            self._first_gap = gap
        self._history[version] = scores
        if len(self._history) > KEPT:
            del self._history[sorted(self._history)[1]]


def _gap(one: LogProbs, other: LogProbs) -> float:
    """Mean absolute difference, nats per token."""
    return fmean(abs(a - b) for a, b in zip(one, other, strict=True))
