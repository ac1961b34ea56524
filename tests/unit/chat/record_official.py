"""Records what vLLM's own parsers make of the corpus, in official_parses.json beside this file.

    python -m tests.unit.chat.record_official PYTHON_WITH_VLLM

It takes a minute; the test reads the file. The second half runs in the other interpreter, which needs
`mistral_common` and, for gpt-oss, the network or `o200k_base.tiktoken` in TIKTOKEN_ENCODINGS_BASE.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

FILE = Path(__file__).with_name("official_parses.json")


def record(python: str) -> None:
    """Have the other interpreter parse every output, and keep the result."""
    from tests.unit.chat.call_corpus import CORPUS
    from tests.unit.chat.families import FAMILIES
    from tests.unit.chat.tokenizers_for_tests import TOOLS

    with tempfile.TemporaryDirectory() as folder:
        work = {}
        for name, family in FAMILIES.items():
            family.tokenizer().save_pretrained(Path(folder) / name)
            work[name] = {"parser": family.parser, "outputs": CORPUS[name]}
        job = Path(folder) / "job.json"
        job.write_text(json.dumps({"work": work, "tools": TOOLS}))
        subprocess.run([python, __file__, str(job)], check=True)
        FILE.write_text((Path(folder) / "result.json").read_text())


def parse(job: Path) -> None:
    """What runs where vLLM is."""
    import vllm
    from transformers import AutoTokenizer
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser import ParserManager

    asked = json.loads(job.read_text())
    found = {"vllm": vllm.__version__}
    for name, row in asked["work"].items():
        tokenizer = AutoTokenizer.from_pretrained(job.parent / name)
        request = ChatCompletionRequest(
            model="m", messages=[{"role": "user", "content": "?"}], tools=asked["tools"], tool_choice="auto"
        )
        found[name] = []
        for output in row["outputs"]:
            if row["parser"] == "openai":
                found[name].append(harmony(output))
                continue
            kind = ParserManager.get_tool_parser(row["parser"], enable_auto_tools=True)
            got = kind(tokenizer, request.tools).extract_tool_calls(output, request)
            found[name].append([[c.function.name, c.function.arguments] for c in got.tool_calls])
    (job.parent / "result.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def harmony(output: str) -> list[list[str]]:
    """What OpenAI's own parser reads: calls of finished messages."""
    from openai_harmony import HarmonyEncodingName, HarmonyError, Role, load_harmony_encoding

    encoding = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
    end = "<|call|>" if "to=functions" in output else "<|return|>"
    ids = encoding.encode(output + (end if output.endswith(("}", ".")) else ""), allowed_special="all")
    try:
        messages = encoding.parse_messages_from_completion_tokens(ids, Role.ASSISTANT)
    except HarmonyError:
        return []
    called = [m for m in messages if (m.recipient or "").startswith("functions.")]
    return [[m.recipient.removeprefix("functions."), m.content[0].text] for m in called]


if __name__ == "__main__":
    if sys.argv[1].endswith(".json"):
        parse(Path(sys.argv[1]))
    else:
        record(sys.argv[1])
