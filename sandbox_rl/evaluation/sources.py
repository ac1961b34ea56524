"""Settings of a suite's parts, and the sources that only suites have: what is installed on this machine.

MMLU's exemplars are public few-shot examples, likely seen in pre-training: good for trying things out and for
comparing one model with itself, not for ranking models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Annotated, Literal

import yaml
from pydantic import Field

from sandbox_rl.errors import DataError
from sandbox_rl.evaluation.documents import DocumentsSource, package_folder
from sandbox_rl.registry import Registry
from sandbox_rl.settings import ByType, Settings
from sandbox_rl.tasks.config import SOURCES, TaskSource
from sandbox_rl.types import Task

_NUMBER = r"-?\d+(?:/\d+)?"
_ALONE = re.compile(rf"({_NUMBER})(?: \(i\.e\., .*\)| values|, or approximately .*)?")
_EQUIVALENT = re.compile(rf".*, or equivalently ({_NUMBER})")
_LETTER = re.compile(r"answer is \(?([A-J])\)?")
_MMLU = "tasks/mmlu/flan_cot_fewshot"


class ChampSource(TaskSource):
    """Competition mathematics from the package `champ-dataset`, where the answer is one number."""

    type: Literal["champ"] = "champ"
    domain: str = "math"
    """Prompt set."""
    scorer: str = "math"
    """Scorer."""

    def tasks(self) -> Iterable[Task]:
        """The problems whose answer is one number: formulas, proofs and yes or no are left out.

        Source: CHAMP (Mao, Kim and Zhou 2024, arXiv 2401.06961).

        Raises:
            DataError: the package is not installed.
        """
        path = package_folder("champ_dataset", "champ-dataset") / "dataset_files" / "v0.json"
        problems = json.loads(path.read_text(encoding="utf-8"))["problems"]
        found = ((name, row, number_in(row["_answer"])) for name, row in problems.items())
        return [
            Task(
                id=f"champ-{name}",
                prompt=row["_text"],
                answer=number,
                domain=self.domain,
                scorer=self.scorer,
                metadata={"category": row["category"]},
            )
            for name, row, number in found
            if number is not None
        ]


def number_in(answer: str) -> str | None:
    """The number that an answer such as "C(10, 5), or equivalently 252" comes to; None where it is none."""
    for form in (_ALONE, _EQUIVALENT):
        if match := form.fullmatch(answer.strip()):
            return match.group(1)
    return None


class MmluSource(TaskSource):
    """The chain-of-thought exemplars of MMLU from the files of the package `lm-eval`."""

    type: Literal["mmlu_cot"] = "mmlu_cot"
    domain: str = "general"
    """Prompt set."""
    scorer: str = "choice"
    """Scorer."""

    def tasks(self) -> Iterable[Task]:
        """The questions of all subjects, by subject (Hendrycks et al. 2021; prompts of arXiv 2210.11416).

        Raises:
            DataError: the package is not installed, or no longer has these files.
        """
        folder = package_folder("lm_eval", "--no-deps lm-eval") / _MMLU
        tasks = []
        for path in sorted(folder.glob("mmlu_*.yaml")):
            # A safe loader of its own: tags of lm-eval's that name Python functions are not followed.
            content = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
            subject = path.stem.removeprefix("mmlu_")
            for number, sample in enumerate(content["fewshot_config"]["samples"]):
                if not (letters := _LETTER.findall(sample["target"])):
                    continue
                tasks.append(
                    Task(
                        id=f"mmlu-{subject}-{number}",
                        prompt=f"{sample['question']}\n\nAnswer with the letter of the right choice alone.",
                        answer=letters[-1],
                        domain=self.domain,
                        scorer=self.scorer,
                        metadata={"subject": subject},
                    )
                )
        if not tasks:
            raise DataError(
                f"package 'lm_eval' has no questions in {_MMLU}; pip install --no-deps lm-eval==0.4.13"
            )
        return tasks


class _PlainLoader(yaml.SafeLoader):
    """Reads unknown tags as nothing."""


_PlainLoader.add_multi_constructor("!", lambda loader, suffix, node: None)

SUITE_SOURCES: Registry[type[TaskSource]] = SOURCES.with_more(
    {"champ": ChampSource, "mmlu_cot": MmluSource, "documents": DocumentsSource}
)
"""Where the tasks of a suite can come from."""

SuiteSource = Annotated[TaskSource, ByType(SUITE_SOURCES)]
"""Settings of any of them, distinguished by `type`."""


class PartSettings(Settings):
    """One line of the results."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """What the results call it."""
    source: SuiteSource
    """Where its tasks come from; all of them are evaluated, nothing is held out."""
    tasks: int | None = Field(None, ge=1)
    """At most so many of them."""
    samples: int = Field(1, ge=1)
    """Episodes per task."""
    required: bool = True
    """False: where its source is not available, the part is left out and the results say so."""
