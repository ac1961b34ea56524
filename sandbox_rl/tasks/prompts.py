"""Prompt sets: one YAML file per domain, the same for training, evaluation and assistant mode.

Placeholders are replaced literally and in one pass: text of a task is never taken for a template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import yaml

from sandbox_rl.errors import ConfigError
from sandbox_rl.registry import shipped
from sandbox_rl.types import Message, Task

_PLACEHOLDER = re.compile(r"\{(problem_statement|working_dir|input_dir|output_dir|documents)\}")
_LAYOUT = {"working_dir": "/testbed", "input_dir": "/testbed/documents", "output_dir": "/testbed"}
"""Of every sandbox backend."""
_KEYS = ("system", "instance", "plain_system", "plain_instance")


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The words around a problem.

    Args:
        name: the domain.
        system, instance: system and user message of an episode in a sandbox.
        plain_system, plain_instance: the same without a sandbox, for comparisons; `{documents}` stands
            for the text of the task's files.
    """

    name: str
    system: str
    instance: str
    plain_system: str = ""
    plain_instance: str = "{documents}{problem_statement}"


def load_prompt_set(domain: str, dirs: Sequence[Path] = ()) -> PromptSet:
    """The prompt set `<domain>.yaml` of the first folder that has it: `dirs`, then the package's own.

    Raises:
        ConfigError: there is none, or the file is not a prompt set.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", domain):
        raise ConfigError(f"domain {domain!r} cannot name a prompt set; use letters, digits, '_' and '-'")
    for folder in dirs:
        if not folder.is_dir():
            raise ConfigError(
                f"prompts: {folder} is no directory, expected one with prompt sets such as {domain}.yaml; "
                "correct the path, or leave it out"
            )
    folders = (*dirs, shipped("configs/prompts"))
    for folder in folders:
        path = folder / f"{domain}.yaml"
        if path.is_file():
            return _read(path, domain)
    known = sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")})
    near = get_close_matches(domain, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"domain {domain!r} has no prompt set: {hint}known are {', '.join(known) or 'none'}; write "
        f"{domain}.yaml with 'system' and 'instance' into a folder and name it under 'prompts' in the recipe"
    )


def render(task: Task, prompt_set: PromptSet) -> tuple[Message, ...]:
    """The messages that open an episode."""
    values = {**_LAYOUT, "problem_statement": task.prompt, "documents": ""}
    return _messages(prompt_set.system, prompt_set.instance, values)


def render_plain(task: Task, prompt_set: PromptSet) -> tuple[Message, ...]:
    """The messages that ask the same without a sandbox; files stand in the prompt under their names."""
    parts = [
        f"=== {name} ===\n{data.decode(errors='replace').rstrip()}\n\n" for name, data in task.files.items()
    ]
    values = {"problem_statement": task.prompt, "documents": "".join(parts)}
    return _messages(prompt_set.plain_system, prompt_set.plain_instance, values)


def _messages(system: str, instance: str, values: Mapping[str, str]) -> tuple[Message, ...]:
    def fill(template: str) -> str:
        return _PLACEHOLDER.sub(lambda match: values.get(match.group(1), match.group()), template).strip()

    user = Message("user", fill(instance))
    return (Message("system", fill(system)), user) if system.strip() else (user,)


def _read(path: Path, domain: str) -> PromptSet:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"prompt set {str(path)!r} cannot be read: {why}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"prompt set {str(path)!r} must be a mapping with 'system' and 'instance'")
    for key, value in content.items():
        if key not in _KEYS:
            near = get_close_matches(str(key), _KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(_KEYS)}"
            raise ConfigError(f"prompt set {str(path)!r}: unknown key {key!r}{hint}")
        if not isinstance(value, str):
            raise ConfigError(f"prompt set {str(path)!r}: {key!r} must be text, it is {value!r:.60}")
    for key in ("system", "instance"):
        if key not in content:
            raise ConfigError(f"prompt set {str(path)!r} lacks {key!r}")
    for key in ("instance", "plain_instance"):
        if key in content and content[key].count("{problem_statement}") != 1:
            raise ConfigError(
                f"prompt set {str(path)!r}: {key!r} must hold {{problem_statement}} once, it does "
                f"{content[key].count('{problem_statement}')} times"
            )
    return PromptSet(name=domain, **content)
