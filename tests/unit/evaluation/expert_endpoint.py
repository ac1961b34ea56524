"""A scripted expert behind a chat endpoint: python -m tests.unit.evaluation.expert_endpoint [SECONDS]

Prints its address and serves for so long. It knows no answers: in a sandbox it works out sums and questions
about documents from the question and the files, by the rule that the question states; anything else, and
everything without a sandbox, it leaves unanswered. What it scores shows that the gold answers can be reached.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from sandbox_rl.policies.fake_endpoint import FakeEndpoint, Raw, said

_COUNT = re.compile(r"How often does the word '(\w+)' occur in the file (\S+)\?")
_FIND = re.compile(r"Which of the files holds the following line\? Answer with the file's name\.\n\n(.+)")
_CLOZE = re.compile(r"a word is replaced by ____\. Which word\?\n\n(.+)")
_SUM = re.compile(r"(?m)([-+\d ]+)=\s*$")


def work_on(question: str) -> str | None:
    """The command that writes the answer; None where the expert knows no way."""
    if match := _COUNT.search(question):
        word, file = match.groups()
        program = (
            f"import re; print(len(re.findall(r'(?<!\\w){word}(?!\\w)', open('documents/{file}').read())))"
        )
    elif match := _FIND.search(question):
        return f"cd documents && grep -lF -- {shlex.quote(match.group(1))} * > ../answer.txt"
    elif match := _CLOZE.search(question):
        before, after = (re.escape(side) for side in match.group(1).split("____", 1))
        pattern = before + r"(\w+)" + after
        program = (
            "import re, pathlib; texts = [p.read_text() for p in pathlib.Path('documents').iterdir()]; "
            f"print(*[w for t in texts for w in re.findall({pattern!r}, t)])"
        )
    elif match := _SUM.search(question):
        return f"echo $(({match.group(1)})) > answer.txt"
    else:
        return None
    return f"python3 -c {shlex.quote(program)} > answer.txt"


def script(body: Mapping[str, Any], number: int) -> Raw:
    """One reply."""
    question = next(m["content"] for m in reversed(body["messages"]) if m["role"] == "user")
    command = work_on(question) if "tools" in body else None
    if command is None or body["messages"][-1]["role"] == "tool":
        return said("I do not know.", [("submit", {})] if "tools" in body else ())
    return said("", [("execute_bash", {"command": command})])


async def main(seconds: float) -> None:
    async with FakeEndpoint(script) as endpoint:
        print(endpoint.base_url, flush=True)
        await asyncio.sleep(seconds)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 600))
