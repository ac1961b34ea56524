"""Small tokenizers trained on the spot, with the added tokens of real families and real templates."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>")
_QWEN_PLAIN = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
_LLAMA = (
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|python_tag|>",
    "<|end_of_text|>",
)
_CORPUS = (
    "You are a helpful assistant. system user assistant tool ipython execute_bash submit command answer ",
    '{"name": "execute_bash", "arguments": {"command": "ls /testbed"}} {"name": "submit", "parameters": {}}',
    "exit code: 0\n[STDOUT]\nhello world\n[STDERR]\nTraceback: error\n 1 2 3 4 5 6 7 8 9 0\n",
    "<function=execute_bash>\n<parameter=command>\npython3 -c 'print(1)'\n</parameter>\n</function>\n",
    "<|im_start|> <|im_end|> <tool_call> </tool_call> start_header_id eot_id\n\n\taaaa bbbb\r\n",
)

TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "execute_bash",
            "description": "Run a command.",
            "parameters": {
                "type": "object",
                "properties": {"command": {"type": "string"}, "count": {"type": "integer"}},
                "required": ["command"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "submit",
            "description": "End.",
            "parameters": {"type": "object", "properties": {}},
        },
    },
)


def shipped_template(name: str) -> str:
    """A chat template out of the installed TRL, found without importing it."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@cache
def _backend_json(family: str) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(_LLAMA if family == "llama" else _QWEN_SPECIAL[:3])
    tokenizer.train_from_iterator(
        [line * 4 for line in _CORPUS],
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if family == "qwen":
        tokenizer.add_special_tokens([AddedToken(t, special=True) for t in _QWEN_SPECIAL])
        tokenizer.add_tokens([AddedToken(t, special=False) for t in _QWEN_PLAIN])
    return str(tokenizer.to_str())


def make_tokenizer(family: str, template: str | None) -> Any:
    """A byte-level BPE of about 420 tokens with `template`; family is "qwen" or "llama"."""
    ends = {"qwen": ("<|im_end|>", "<|endoftext|>"), "llama": ("<|eot_id|>", "<|end_of_text|>")}[family]
    extra = {"bos_token": "<|begin_of_text|>"} if family == "llama" else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend_json(family)),
        eos_token=ends[0],
        pad_token=ends[1],
        **extra,
    )
    tokenizer.chat_template = template
    return tokenizer


TEMPLATES = {
    "qwen3": ("qwen", "qwen3"),
    "qwen3_training": ("qwen", "qwen3_training"),
    "qwen3_instruct_2507": ("qwen", "qwen3_instruct_2507"),
    "qwen2_5": ("qwen", "qwen2_5"),
    "qwen3_6": ("qwen", "qwen3_6"),
    "qwen3_5_nothink": ("qwen", "qwen3_5_nothink"),
    "llama3": ("llama", "llama3"),
    "llama3_1": ("llama", "llama3_1"),
    "chatml": ("qwen", ""),
}
"""Name in the tests → tokenizer family and TRL's name of the template."""


OTHER_FAMILIES = {
    "phi3": ("<|end|>", ("<|system|>", "<|user|>", "<|assistant|>")),
    "gemma3": ("<end_of_turn>", ("<start_of_turn>",)),
    "deepseekv3": ("<｜end▁of▁sentence｜>", ("<｜User｜>", "<｜Assistant｜>", "<｜tool▁outputs▁begin｜>")),
    "cohere": ("<|END_OF_TURN_TOKEN|>", ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")),
}
"""TRL's name of a template without tools → its end-of-turn and its other control tokens."""


def other_tokenizer(name: str) -> Any:
    """A tokenizer of one of `OTHER_FAMILIES`."""
    end, others = OTHER_FAMILIES[name]
    tokenizer = make_tokenizer("qwen", shipped_template(name))
    tokenizer.add_tokens(list(others))
    tokenizer.add_special_tokens({"eos_token": end, "bos_token": "<s>"})
    return tokenizer


def tokenizer_for(name: str) -> Any:
    """The test tokenizer with the template called `name` in `TEMPLATES`."""
    family, source = TEMPLATES[name]
    return make_tokenizer(family, shipped_template(source) if source else CHATML)
