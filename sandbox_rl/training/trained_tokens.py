"""What the loss makes of each token, written down once its update has finished.

A token weighs what the loss changes with its log-prob, |dL / d log p| (the gradient coefficient of arXiv
2402.03300, section 5.2). It is read off the very gradient that goes back into the model, so it holds for
every loss, mask, clip and correction: of the policy-gradient term -A r c w it is |A r c w|, with the
advantage A, the ratio r to the sampling policy (0 where it is clipped), the correction c for another sampler
and the loss's weight w of the token; a KL term (`beta`) adds its own. An entropy bonus is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerState

from sandbox_rl.journal.trained import TrainedRow, TrainedTokens
from sandbox_rl.training.agreement import together
from sandbox_rl.training.micro_batches import sampled_mask
from sandbox_rl.training.views import LossInputs

ROW = "row"
"""Key of a synchronous micro-batch: the number of each row in its generation (B,); TRL does not read it."""

Terms = tuple[Sequence[tuple[str, int, int]], torch.Tensor, torch.Tensor]
"""Episode, first token and count of each row; log-probs and gradients of all of them in order (N,)."""


class TokenRecorder(TrainerCallback):  # type: ignore[misc]
    """Sees the loss of this process and writes when its update has finished.

    Args:
        to: where it writes.
    """

    def __init__(self, to: TrainedTokens) -> None:
        self._to = to
        self._episodes: Sequence[str] = ()
        self._seen: list[Terms] = []

    def rolled_out(self, episodes: Sequence[str], rows: LossInputs) -> None:
        """Number the rows of a generation, which TRL is about to shuffle and split.

        Args:
            episodes: of the rows, in order.
            rows: what TRL takes its micro-batches from.
        """
        self._episodes = episodes
        rows[ROW] = torch.arange(len(episodes), device=rows["completion_mask"].device)

    def padded(self, inputs: LossInputs, log_probs: torch.Tensor) -> None:
        """A part of a synchronous micro-batch, while its loss is computed.

        Args:
            log_probs: the loss's own, (B, C).
        """
        if ROW not in inputs or not log_probs.requires_grad:
            return
        sampled = sampled_mask(inputs).bool()
        counts = sampled.sum(1).tolist()
        names = [self._episodes[number] for number in inputs[ROW].tolist()]
        places = [(name, 0, count) for name, count in zip(names, counts, strict=True)]
        self._follow(places, log_probs, log_probs.detach()[sampled], lambda gradient: gradient[sampled])

    def packed(
        self, samples: Sequence[tuple[str, int]], segments: torch.Tensor, log_probs: torch.Tensor
    ) -> None:
        """A row of an asynchronous micro-batch, while its loss is computed.

        Args:
            samples: episode and first token of each that is packed there.
            segments: to which of them each term of the loss belongs, (M,).
            log_probs: of the terms, as the loss reads them, (M,).
        """
        if not log_probs.requires_grad:
            return
        counts = torch.bincount(segments, minlength=len(samples)).tolist()
        order = torch.argsort(segments, stable=True)
        places = [(name, first, count) for (name, first), count in zip(samples, counts, strict=True)]
        self._follow(places, log_probs, log_probs.detach()[order], lambda gradient: gradient[order])

    def _follow(
        self,
        places: Sequence[tuple[str, int, int]],
        log_probs: torch.Tensor,
        values: torch.Tensor,
        chosen: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        def back(gradient: torch.Tensor) -> None:
            self._seen.append((places, values, chosen(gradient.detach())))

        log_probs.register_hook(back)  # type: ignore[no-untyped-call]

    def on_step_end(self, args: object, state: TrainerState, control: object, **kwargs: Any) -> None:
        """Write what the update that has finished consisted of.

        Raises:
            SetupError: on every process, when a file cannot be written.
        """
        seen, self._seen = self._seen, []
        with together():
            rows = [row for terms in seen for row in _rows(*terms)]
            if rows:
                self._to.write(int(state.global_step), rows)


def _rows(
    places: Sequence[tuple[str, int, int]], log_probs: torch.Tensor, gradients: torch.Tensor
) -> list[TrainedRow]:
    counts = [count for _, _, count in places]
    both = torch.stack((log_probs.float(), gradients.float())).cpu().numpy()
    values = np.split(both, np.cumsum(counts)[:-1], axis=1)
    return [
        TrainedRow(episode, first, part[0], part[1])
        for (episode, first, count), part in zip(places, values, strict=True)
        if count
    ]
