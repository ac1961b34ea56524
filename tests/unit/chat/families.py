"""Families of models: template, control tokens, ends of turns, format of calls, parser of their servers.

Templates are those that TRL ships. Where it ships none they are written here in the shape of the family's
own: tags in the same places around the same contents.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tests.unit.chat.tokenizers_for_tests import make_tokenizer, shipped_template

MISTRAL = """{{- bos_token }}{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for m in messages %}{%- if m.role == 'system' %}{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}
{%- elif m.role == 'user' %}
{%- if tools and m == users[-1] %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST]' + m.content + '[/INST]' }}
{%- elif m.role == 'assistant' and m.tool_calls %}CALLS{{ eos_token }}
{%- elif m.role == 'assistant' %}{{ m.content + eos_token }}
{%- elif m.role == 'tool' %}
{%- if m.tool_call_id | length != 9 %}{{ raise_exception('an id has nine letters') }}{% endif %}RESULT
{%- endif %}{%- endfor %}"""
MISTRAL_LIST = MISTRAL.replace(
    "CALLS",
    """{{- '[TOOL_CALLS][' }}{%- for c in m.tool_calls %}{%- set out = c.function | tojson %}
{{- out[:-1] + ', "id": "' + c.id + '"}' + (']' if loop.last else ', ') }}{%- endfor %}""",
).replace(
    "RESULT",
    """{{- '[TOOL_RESULTS]{"content": ' + m.content }}
{{- ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}""",
)
MISTRAL_NAMED = MISTRAL.replace(
    "CALLS",
    """{%- for c in m.tool_calls %}
{{- '[TOOL_CALLS]' + c.function.name + '[ARGS]' + c.function.arguments | tojson }}{%- endfor %}""",
).replace("RESULT", "{{- '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}")
DEEPSEEK_V31 = """{{- bos_token }}{%- set ns = namespace(tool=false) %}
{%- for m in messages %}{%- if m.role == 'system' %}{{ m.content }}
{%- elif m.role == 'user' %}{%- set ns.tool = false %}{{ '<｜User｜>' + m.content }}
{%- elif m.role == 'assistant' %}{%- if not ns.tool %}{{ '<｜Assistant｜></think>' }}{% endif %}
{%- set ns.tool = false %}{{ m.content or '' }}
{%- for c in m.tool_calls or [] %}{%- if loop.first %}{{ '<｜tool▁calls▁begin｜>' }}{% endif %}
{{- '<｜tool▁call▁begin｜>' + c.function.name + '<｜tool▁sep｜>' + c.function.arguments }}
{{- '<｜tool▁call▁end｜>' }}
{%- if loop.last %}{{ '<｜tool▁calls▁end｜>' }}{% endif %}{%- endfor %}{{ '<｜end▁of▁sentence｜>' }}
{%- elif m.role == 'tool' %}{%- set ns.tool = true %}
{{- '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt and not ns.tool %}{{ '<｜Assistant｜></think>' }}{% endif %}"""
SMOLLM3 = """<|im_start|>system
Today Date: {{ strftime_now('%d %B %Y') }}

{% if messages[0].role == 'system' %}{{ messages[0].content.rstrip() + '\n\n' }}{% endif %}
{%- if xml_tools %}{{ 'Call functions.\n<tools>\n' }}
{%- for tool in xml_tools %}{{ tool | string + '\n' }}{% endfor %}
{{- '</tools>\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>\n' }}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- for m in messages %}{%- set content = m.content if m.content is string else '' %}
{%- if m.role == 'user' or m.role == 'tool' %}{{ '<|im_start|>user\n' + content + '<|im_end|>\n' }}
{%- elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' + content.lstrip('\n') + '<|im_end|>\n' }}
{%- endif %}{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
CODER = """{% for m in messages %}{% if m.role == 'system' or loop.first %}<|im_start|>system
{% if m.role == 'system' %}{{ m.content }}{% endif %}{% if tools %}<tools>{% for t in tools %}
<function>
<name>{{ t.function.name }}</name>
</function>{% endfor %}
</tools>
<tool_call>
<function=name>
<parameter=key>
value
</parameter>
</function>
</tool_call>{% endif %}<|im_end|>
{% endif %}{% if m.role == 'user' %}<|im_start|>user
{{ m.content }}<|im_end|>
{% elif m.role == 'assistant' %}<|im_start|>assistant
{{ m.content }}{% for c in m.tool_calls or [] %}{{ '\n' }}<tool_call>
<function={{ c.function.name }}>
{% for k, v in c.function.arguments.items() %}<parameter={{ k }}>
{{ v }}
</parameter>
{% endfor %}</function>
</tool_call>{% endfor %}<|im_end|>
{% elif m.role == 'tool' %}{% if loop.previtem.role != 'tool' %}<|im_start|>user
{% endif %}<tool_response>
{{ m.content }}
</tool_response>
{% if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>
{% endif %}{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table in docs/models.md.

    Args:
        template: its source.
        eos: of the tokenizer.
        model_ends: tokens that the generation config lists besides.
        call_format: that the template describes.
        parser: vLLM's name of the parser of its servers.
    """

    template: str
    eos: str
    call_format: str
    parser: str
    model_ends: tuple[str, ...] = ()

    def tokenizer(self) -> Any:
        """A small tokenizer with the family's control tokens and template."""
        pattern = r"<\|[a-zA-Z_\"]+\|?>|<[a-z_]+\|>|<｜[^｜]+｜>|\[/?[A-Z]+(?:_[A-Z]+)*\]|</?think>"
        family = "llama" if "<|eot_id|>" in self.template else "qwen"
        tokenizer = make_tokenizer(family, self.template)
        known = set(tokenizer.get_vocab())
        tokenizer.add_tokens(sorted(set(re.findall(pattern, self.template)) - known))
        tokenizer.add_special_tokens({"eos_token": self.eos})
        if tokenizer.bos_token is None:
            tokenizer.add_special_tokens({"bos_token": "<s>"})
        return tokenizer


FAMILIES = {
    "qwen2_5": Family(shipped_template("qwen2_5"), "<|im_end|>", "hermes", "hermes", ("<|endoftext|>",)),
    "qwen3": Family(shipped_template("qwen3"), "<|im_end|>", "hermes", "hermes", ("<|endoftext|>",)),
    "smollm3": Family(SMOLLM3, "<|im_end|>", "hermes", "hermes"),
    "qwen3_coder": Family(CODER, "<|im_end|>", "qwen_xml", "qwen3_coder", ("<|endoftext|>",)),
    "qwen3_6": Family(
        shipped_template("qwen3_6"), "<|im_end|>", "qwen_xml", "qwen3_coder", ("<|endoftext|>",)
    ),
    "llama3_1": Family(
        shipped_template("llama3_1"),
        "<|eot_id|>",
        "llama_json",
        "llama3_json",
        ("<|eom_id|>", "<|end_of_text|>"),
    ),
    "glm4_5": Family(
        shipped_template("glm4moe"), "<|endoftext|>", "glm", "glm45", ("<|user|>", "<|observation|>")
    ),
    "mistral": Family(MISTRAL_LIST, "</s>", "mistral", "mistral"),
    "mistral_v11": Family(MISTRAL_NAMED, "</s>", "mistral_named", "mistral"),
    "deepseek_v3": Family(
        shipped_template("deepseekv3"), "<｜end▁of▁sentence｜>", "deepseek_v3", "deepseek_v3"
    ),
    "deepseek_v3_1": Family(DEEPSEEK_V31, "<｜end▁of▁sentence｜>", "deepseek_v31", "deepseek_v31"),
    "gpt_oss": Family(shipped_template("gptoss"), "<|return|>", "harmony", "openai", ("<|call|>",)),
    "gemma4": Family(shipped_template("gemma4_v5"), "<turn|>", "gemma", "gemma4", ("<|tool_response>",)),
}
