"""Outputs of models in each format: well-formed, several calls, with parts missing, cut, and junk."""

from __future__ import annotations

HERMES = (
    '<tool_call>\n{"name": "execute_bash", "arguments": {"command": "ls"}}\n</tool_call>',
    'I look.\n<tool_call>\n{"name": "execute_bash", "arguments": {"command": "ls", "count": 3}}\n</tool_call>'
    '\n<tool_call>\n{"name": "submit", "arguments": {}}\n</tool_call>',
    '<tool_call>\n{"name": "execute_bash", "arguments": {"command": "a \\"b\\" \\n é {}"}}\n</tool_call>',
    '<tool_call>\n{"name": "execute_bash", "arguments": {"command": "ls"}}',
    '<tool_call>\n{"name": "execute_bash", "arguments": {"command": "l',
    '<tool_call>\n{"name": "execute_bash", "arguments": {"command": "a\nb"}}\n</tool_call>',
    '<tool_call>\n{"name": "execute_bash", "arguments": {"command": "ls"}\n</tool_call>',
    "<tool_call>\nls\n</tool_call>",
    "Only words, and {} and </tool_call>.",
    "",
)
XML = (
    "<tool_call>\n<function=execute_bash>\n<parameter=command>\nls\n</parameter>\n</function>\n</tool_call>",
    "I look.\n<tool_call>\n<function=execute_bash>\n<parameter=command>\na\n\tb\n</parameter>\n<parameter="
    "count>\n3\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=submit>\n</function>\n</tool_call>",
    "<function=execute_bash>\n<parameter=command>\nls\n</parameter>\n</function>\n</tool_call>",
    "I look.\n<function=execute_bash>\n<parameter=command>\nls\n</parameter>\n</function>",
    "<tool_call>\n<function=execute_bash>\n<parameter=command>\nls\n</parameter>\n</function>",
    "<tool_call>\n<function=execute_bash>\n<parameter=command>\nls\n</parameter>\n</tool_call>",
    "<tool_call>\n<function=execute_bash>\n<parameter=command>\nls\n</function>\n</tool_call>",
    "<tool_call>\n<function=execute_bash>\n<parameter=command>\nls\n<parameter=count>\n3\n</parameter>\n</function>\n"
    "</tool_call>",
    "<tool_call>\n<function=execute_bash>\n<parameter=command>\nls\n</parameter>\n",
    "<tool_call>\n<function=execute_bash>\n<parameter=command>\nrm -r /testbed/no",
    "<tool_call>\n<function=execute_bash>\n<parameter=command>\nls\n</parameter>\n</function>\n"
    "<tool_call>\n<function=submit>\n</function>\n</tool_call>",
    "<tool_call>\n</tool_call>",
    "Only words.",
    "",
)
LLAMA = (
    '{"name": "execute_bash", "parameters": {"command": "ls"}}',
    '<|python_tag|>{"name": "execute_bash", "parameters": {"command": "ls"}}',
    '{"name": "execute_bash", "parameters": {"command": "ls"}}; {"name": "submit", "parameters": {}}',
    'I look.\n{"name": "execute_bash", "arguments": {"command": "ls"}}',
    '{"name": "execute_bash", "parameters": {"command": "l',
    '{"name": "execute_bash", "parameters": {"command": "a\nb"}}',
    "Only words.",
    "",
)
GLM = (
    "<tool_call>execute_bash\n<arg_key>command</arg_key>\n<arg_value>ls</arg_value>\n</tool_call>",
    "I look.\n<tool_call>execute_bash\n<arg_key>command</arg_key>\n<arg_value>a\n\tb </arg_value>\n"
    "<arg_key>count</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>submit\n</tool_call>",
    "<tool_call>execute_bash<arg_key>command</arg_key><arg_value>ls</arg_value></tool_call>",
    "<tool_call>submit</tool_call>",
    "<tool_call>execute_bash\n<arg_key>command</arg_key>\n<arg_value>ls</arg_value>\n",
    "<tool_call>execute_bash\n<arg_key>command</arg_key>\n<arg_value>rm -r no",
    "Only words.",
    "",
)
MISTRAL = (
    '[TOOL_CALLS][{"name": "execute_bash", "arguments": {"command": "ls"}, "id": "aB3dE6gH9"}]',
    'I look.[TOOL_CALLS][{"name": "execute_bash", "arguments": {"command": "ls"}, "id": "aB3dE6gH9"}, '
    '{"name": "submit", "arguments": {}, "id": "bB3dE6gH9"}]',
    '[TOOL_CALLS][{"name": "execute_bash", "arguments": {"command": "ls"}}]',
    '[TOOL_CALLS][{"name": "execute_bash", "arguments": {"command": "l',
    "Only words [1].",
    "",
)
MISTRAL_NAMED = (
    '[TOOL_CALLS]execute_bash[ARGS]{"command": "ls"}',
    'I look.[TOOL_CALLS]execute_bash[ARGS]{"command": "ls"}[TOOL_CALLS]submit[ARGS]{}',
    '[TOOL_CALLS]execute_bash{"command": "ls"}',
    '[TOOL_CALLS]execute_bash[ARGS]{"command": "l',
    "Only words [1].",
    "",
)
DEEPSEEK_V3 = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>execute_bash\n```json\n"
    '{"command": "ls"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>execute_bash\n```json\n"
    '{"command": "ls"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>submit\n```json\n'
    "{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>execute_bash\n```json\n{"command": "l',
    "Only words.",
    "",
)
DEEPSEEK_V31 = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>execute_bash<｜tool▁sep｜>{"command": "ls"}'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    'I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>execute_bash<｜tool▁sep｜>{"command": "ls"}'
    "<｜tool▁call▁end｜><｜tool▁call▁begin｜>submit<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>execute_bash<｜tool▁sep｜>{"command": "l',
    "Only words.",
    "",
)
HARMONY = (
    "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>commentary "
    'to=functions.execute_bash <|constrain|>json<|message|>{"command": "ls"}',
    ' to=functions.execute_bash<|channel|>commentary json<|message|>{"command": "ls"}',
    "<|channel|>commentary to=functions.submit <|constrain|>json<|message|>{}",
    '<|channel|>commentary to=functions.execute_bash <|constrain|>json<|message|>{"command": "l',
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Only words.",
    "<|channel|>analysis<|message|>only thoughts",
    "",
)
GEMMA = (
    '<|tool_call>call:execute_bash{command:<|"|>ls<|"|>}<tool_call|>',
    'I look.<|tool_call>call:execute_bash{command:<|"|>a, {b}\n"c"<|"|>,count:3}<tool_call|>'
    "<|tool_call>call:submit{}<tool_call|>",
    '<|channel>thought\nI look.<channel|><|tool_call>call:execute_bash{command:<|"|>ls<|"|>}<tool_call|>',
    '<|tool_call>call:execute_bash{command:<|"|>rm -r no',
    '<|tool_call>call:execute_bash{command:<|"|>ls<|"|>}',
    "Only words.",
    "",
)
CORPUS = {
    "qwen2_5": HERMES,
    "qwen3": HERMES,
    "smollm3": HERMES,
    "qwen3_coder": XML,
    "qwen3_6": tuple(f"I think.\n</think>\n\n{text}" for text in XML),
    "llama3_1": LLAMA,
    "glm4_5": tuple(f"<think></think>\n{text}" for text in GLM),
    "mistral": MISTRAL,
    "mistral_v11": MISTRAL_NAMED,
    "deepseek_v3": tuple(f"I think.\n</think>\n\n{text}" for text in DEEPSEEK_V3),
    "deepseek_v3_1": DEEPSEEK_V31,
    "gpt_oss": HARMONY,
    "gemma4": GEMMA,
}
