"""The sources that only suites have, and the suites that are shipped."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from sandbox_rl.config.suite import Suite, find_suite, load_suite
from sandbox_rl.errors import ConfigError, DataError
from sandbox_rl.evaluation.documents import DocumentsSource, occurrences
from sandbox_rl.evaluation.sources import ChampSource, MmluSource, number_in
from sandbox_rl.rewards.base import load_scorer
from sandbox_rl.tasks.load import load_source
from sandbox_rl.tasks.prompts import load_prompt_set
from tests.unit.evaluation.expert_endpoint import work_on


def load(source, limit=None):
    return list(load_source(source, limit=limit, base_dir=Path(), seed=0))


@pytest.mark.parametrize("name", ["offline", "paper"])
def test_shipped_suites_are_valid(name):
    suite = load_suite(find_suite(name))
    for part in suite.parts:
        load_prompt_set(part.source.domain)
    header = find_suite(name).read_text().partition("\nname:")[0]
    assert all(line.startswith("#") for line in header.splitlines())


def test_the_paper_s_suite_says_what_the_paper_says():
    suite = load_suite(find_suite("paper"))
    assert {part.name: part.samples for part in suite.parts if part.samples > 1} == {
        "math": 16,
        "long_context": 4,
    }
    assert {part.source.config for part in suite.parts} == {
        f"{name}_mini" for name in ("math", "chem", "physics", "biomed", "long_context", "instruct_follow")
    }
    assert (suite.sampling.temperature, suite.sampling.top_p, suite.sampling.top_k) == (0.7, 0.8, 20)
    assert suite.reward.judge is not None


def test_every_gold_answer_of_the_offline_suite_earns_its_own_scorer_s_mark():
    for part in load_suite(find_suite("offline")).parts:
        if not part.required:
            continue
        tasks = load(part.source)
        assert len(tasks) >= 40
        for task in tasks:
            scorer = load_scorer(task.scorer)
            assert scorer.check_gold is not None
            scorer.check_gold(task)
            value = scorer.score(task.answer, task)
            assert (value if isinstance(value, float) else value["value"]) == 1.0, task.id


def test_questions_about_documents_follow_from_the_documents():
    tasks = load(DocumentsSource(type="documents", size=30, files=6))
    assert tasks == load(DocumentsSource(type="documents", size=30, files=6))
    assert tasks != load(DocumentsSource(type="documents", size=30, files=6, seed=1))
    assert [task.metadata["kind"] for task in tasks[:4]] == ["count", "find", "cloze", "count"]
    assert [task.id for task in load(DocumentsSource(type="documents", size=30, files=6), limit=4)] == [
        task.id for task in tasks[:4]
    ]
    for task in tasks:
        texts = {name: data.decode() for name, data in task.files.items()}
        assert len(texts) == 6
        assert min(map(len, texts.values())) >= 3_000
        assert work_on(task.prompt) is not None
        if task.metadata["kind"] == "count":
            word = re.search(r"the word '(\w+)'", task.prompt)[1]
            file = re.search(r"in the file (\S+)\?", task.prompt)[1]
            assert int(task.answer) == sum(token == word for token in re.split(r"\W+", texts[file]))
        elif task.metadata["kind"] == "find":
            line = task.prompt.rpartition("\n\n")[2]
            assert [name for name, text in texts.items() if line in text] == [task.answer]
        else:
            line = task.prompt.rpartition("\n\n")[2].replace("____", task.answer)
            assert sum(text.count(line) for text in texts.values()) == 1


def test_words_are_counted_whole():
    assert occurrences("form", "form form-al formal _form (form) form2 form") == 4


def test_documents_of_a_package_and_of_none():
    tasks = load(DocumentsSource(type="documents", package="email", size=3, files=4, min_chars=500))
    assert all(task.id.startswith("documents-email-0-") for task in tasks)
    with pytest.raises(DataError, match="'no_such_package' is not installed; pip install no_such_package"):
        load(DocumentsSource(type="documents", package="no_such_package"))
    with pytest.raises(DataError, match="expected at least 200; lower 'files'"):
        DocumentsSource(type="documents", files=200).tasks()


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("239", "239"),
        ("C(10, 5), or equivalently 252", "252"),
        ("5/14, or approximately 35.7%", "5/14"),
        ("100 (i.e., all values)", "100"),
        ("98 values", "98"),
        ("-3", "-3"),
        ("2^(n-1)", None),
        ("No", None),
        ("x=6, y=5", None),
        ("2 inequalities", None),
        ("376 and 625", None),
        ("sqrt(3)/3, or equivalently 1/sqrt(3)", None),
    ],
)
def test_numbers_in_champ_s_answers(answer, number):
    assert number_in(answer) == number


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Packages with files of the same form as the real ones; neither can be imported for its code."""
    champ = tmp_path / "champ_dataset" / "dataset_files"
    champ.mkdir(parents=True)
    (champ.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    problems = {
        f"P_{i}": {"_text": f"Question {i}?", "_answer": answer, "category": "Combinatorics"}
        for i, answer in enumerate(["7", "n!", "1/2"])
    }
    (champ / "v0.json").write_text(json.dumps({"problems": problems, "concepts": {}, "hints": {}}))
    mmlu = tmp_path / "lm_eval" / "tasks" / "mmlu" / "flan_cot_fewshot"
    mmlu.mkdir(parents=True)
    (tmp_path / "lm_eval" / "__init__.py").write_text("raise RuntimeError('imported')")
    samples = [
        {"question": "Which?\n(A) this (B) that", "target": "Let's see. (A) is wrong. The answer is (B)."},
        {"question": "What?\n(A) a (B) b", "target": "It cannot be said."},
    ]
    content = yaml.safe_dump(
        {"dataset_name": "law", "fewshot_config": {"sampler": "first_n", "samples": samples}}
    )
    (mmlu / "mmlu_law.yaml").write_text(content + "process_docs: !function utils.process\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_champ_s_problems_with_a_number(packages):
    tasks = ChampSource(type="champ").tasks()
    assert [(task.id, task.prompt, task.answer) for task in tasks] == [
        ("champ-P_0", "Question 0?", "7"),
        ("champ-P_2", "Question 2?", "1/2"),
    ]
    assert load_scorer("math").score(r"\boxed{\frac{1}{2}}", tasks[1]) == 1.0
    assert len(load(ChampSource(type="champ"), limit=1)) == 1


def test_mmlu_s_questions(packages):
    (task,) = MmluSource(type="mmlu_cot").tasks()
    assert (task.id, task.answer, task.scorer) == ("mmlu-law-0", "B", "choice")
    assert task.prompt.startswith("Which?\n(A) this (B) that\n\nAnswer with the letter")


@pytest.mark.skipif(find_spec("champ_dataset") is not None, reason="the package is installed")
def test_a_missing_package_says_what_to_install():
    with pytest.raises(DataError, match="pip install champ-dataset"):
        ChampSource(type="champ").tasks()


def test_a_suite_s_name_or_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "offline").mkdir()  # a directory of that name is no suite
    assert find_suite("offline").name == "offline.yaml"
    with pytest.raises(ConfigError, match=r"expected a recipe, a suite, or .*offline, paper"):
        find_suite("ofline")
    with pytest.raises(ConfigError, match="expected a recipe"):
        find_suite("../suites/offline")


def test_a_suite_needs_a_part_and_names_that_differ(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("name: s\nparts: []\n")
    with pytest.raises(ConfigError, match=r"s.yaml:2: key 'parts'"):
        load_suite(path)
    path.write_text("parts: [{name: a, source: {type: champs}}]\n")
    with pytest.raises(
        ConfigError, match=r"'parts.0.source.type': task source 'champs' is unknown: did you mean 'champ'"
    ):
        load_suite(path)
    assert "grpo" not in Suite.model_fields
