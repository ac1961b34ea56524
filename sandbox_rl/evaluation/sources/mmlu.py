"""MMLU's chain-of-thought exemplars (Hendrycks et al. 2021; prompts of arXiv 2210.11416) as questions.

They are public few-shot examples, likely seen in pre-training: good for trying things out and for comparing
one model with itself, not for ranking models.
"""

from __future__ import annotations

import re

import yaml

from sandbox_rl.errors import DataError
from sandbox_rl.evaluation.sources.config import MmluSource
from sandbox_rl.evaluation.sources.packages import package_folder
from sandbox_rl.types import Task

__all__ = ["mmlu_tasks"]

_ANSWER = re.compile(r"answer is \(?([A-J])\)?")
_FOLDER = "tasks/mmlu/flan_cot_fewshot"


def mmlu_tasks(source: MmluSource) -> list[Task]:
    """The questions of all subjects, by subject.

    Raises:
        DataError: the package is not installed, or no longer has these files.
    """
    folder = package_folder("lm_eval", "--no-deps lm-eval") / _FOLDER
    tasks = []
    for path in sorted(folder.glob("mmlu_*.yaml")):
        # A safe loader of its own: tags of lm-eval's that name Python functions are not followed.
        samples = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)["fewshot_config"][
            "samples"
        ]
        subject = path.stem.removeprefix("mmlu_")
        for number, sample in enumerate(samples):
            letters = _ANSWER.findall(sample["target"])
            if not letters:
                continue
            tasks.append(
                Task(
                    id=f"mmlu-{subject}-{number}",
                    prompt=f"{sample['question']}\n\nAnswer with the letter of the right choice alone.",
                    answer=letters[-1],
                    domain=source.domain,
                    scorer=source.scorer,
                    metadata={"subject": subject},
                )
            )
    if not tasks:
        raise DataError(
            f"package 'lm_eval' has no questions in {_FOLDER}; pip install --no-deps lm-eval==0.4.13"
        )
    return tasks


class _PlainLoader(yaml.SafeLoader):
    """Reads unknown tags as nothing."""


_PlainLoader.add_multi_constructor("!", lambda loader, suffix, node: None)
