"""The chat template that a tokenizer folder carries, so that other programs render conversations as `chat.render` does.

ChatML turns, reasoning in `<think>` blocks that stay in the history (so that a rendering is always a prefix of its
continuation), functions listed in the system turn. Source: ChatML; Qwen3 chat template (format, not text).
"""

from __future__ import annotations

EOS, IM_START, IM_END, THINK, END_THINK = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"
SPECIALS = (EOS, IM_START, IM_END, THINK, END_THINK)
"""The special tokens of a trained tokenizer; ids 0 to 4."""

TOOLS_HEAD = '# Tools\n\nTo call a function, write:\n<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call>\n\nFunctions:'

CHAT_TEMPLATE = (
    "{%- if tools %}"
    "{%- set ns = namespace(box=" + repr(TOOLS_HEAD) + ") %}"
    "{%- for tool in tools %}{%- set ns.box = ns.box + '\\n' + (tool | tojson) %}{%- endfor %}"
    "{%- if not messages or messages[0].role != 'system' %}{{- '<|im_start|>system\\n' + ns.box + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.role == 'assistant' and message.reasoning_content %}"
    "{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{{- message.content or '' }}"
    "{%- if tools and loop.first and message.role == 'system' %}{{- '\\n\\n' + ns.box }}{%- endif %}"
    "{%- if message.role == 'assistant' and message.tool_calls %}"
    "{%- for call in message.tool_calls %}"
    "{%- set call = call.function if call.function else call %}"
    "{%- if not loop.first or message.content %}{{- '\\n' }}{%- endif %}"
    "{{- '<tool_call>\\n{\"name\": ' + (call.name | tojson) + ', \"arguments\": ' + (call.arguments | tojson) + '}\\n</tool_call>' }}"
    "{%- endfor %}"
    "{%- endif %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
