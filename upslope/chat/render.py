"""ChatML: conversations to tokens with provenance, and sampled tokens back to messages.

    <|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n<think>\n{reasoning}\n</think>\n\n{content}<|im_end|>\n

An assistant turn without reasoning has no think block. Reasoning stays in the history, so a rendering is a prefix of
every continuation and sampled ids are never tokenised again. Headers and bodies are encoded apart, at the place where
generation starts; special ids come from this renderer alone, whatever the text says.

Source: ChatML; Qwen3 chat template. The jinja twin for other programs is `tokens.template.CHAT_TEMPLATE`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from upslope.chat.messages import Message, Role, Tokens, Tool, ToolCall, messages_of
from upslope.config import UsageError
from upslope.tokens.template import END_THINK, THINK, TOOLS_HEAD
from upslope.tokens.tokenizer import Tokenizer

CALL = re.compile(r"\n?<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)


class Renderer(Protocol):
    """What rollouts and trainers need of a chat format."""

    def open(self, messages: Sequence[Message | Mapping[str, Any]], tools: Sequence[Tool] = (), think: bool = False) -> Tokens: ...

    def extend(self, so_far: Tokens, messages: Sequence[Message | Mapping[str, Any]]) -> Tokens: ...

    def parse(self, ids: Sequence[int]) -> Message: ...


class ChatML:
    """The renderer of a tokenizer that has the ChatML tokens; UsageError for one that lacks them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.stop: tuple[int, ...] = (tokenizer.im_end, tokenizer.eos)
        self._special = {THINK: tokenizer.think, END_THINK: tokenizer.end_think}
        self._newline = tokenizer.encode("\n")

    def open(self, messages: Sequence[Message | Mapping[str, Any]], tools: Sequence[Tool] = (), think: bool = False) -> Tokens:
        """Tokens of a conversation; ends with the generation prompt iff the last message is not the assistant's.

        think: after the generation prompt, also opens a think block, so that the model must think (evaluation).
        """
        turns = list(messages_of(messages))
        if not turns:
            raise UsageError("a conversation needs at least one message")
        if tools:
            box = TOOLS_HEAD + "".join("\n" + json.dumps(t.to_json(), ensure_ascii=False) for t in tools)
            if turns[0].role == "system":
                turns[0] = Message("system", f"{turns[0].content}\n\n{box}")
            else:
                turns.insert(0, Message("system", box))
        out = Tokens.join([self._turn(m) for m in turns])
        if turns[-1].role != "assistant":
            out = out + self._header("assistant")
            if think:
                out = out + Tokens.of([self.tokenizer.think, *self._newline], "assistant")
        elif think:
            raise UsageError("think = True needs a conversation that ends with another role than the assistant's")
        return out

    def extend(self, so_far: Tokens, messages: Sequence[Message | Mapping[str, Any]]) -> Tokens:
        """`so_far` followed by more messages; the ids of `so_far` are kept as they are.

        so_far: from `open` or `extend`, possibly followed by sampled ids. A sampled reply that did not end is closed
        with an untrained `<|im_end|>`. Ends with the generation prompt iff the last message is not the assistant's.
        """
        turns = messages_of(messages)
        if not turns:
            raise UsageError("extend needs at least one message")
        parts = [so_far]
        header = self._header("assistant")
        if len(so_far) >= len(header) and so_far[-len(header) :] == header:  # nothing sampled yet after the generation prompt
            if turns[0].role != "assistant":
                raise UsageError(f"the assistant's turn is open, but a {turns[0].role} message follows\nway out: give its reply first")
            parts += [self._body(turns[0]), self._end(turns[0])]
            turns = turns[1:]
        else:
            parts.append(self._close(so_far))
        parts += [self._turn(m) for m in turns]
        if turns and turns[-1].role != "assistant":
            parts.append(header)
        return Tokens.join(parts)

    def parse(self, ids: Sequence[int]) -> Message:
        """The assistant message that sampled ids say, by decoding only.

        Everything up to `</think>` is reasoning (also where the prompt had opened the block); a block that never ends
        leaves the content empty. Malformed tool calls stay in the content.
        """
        body = [int(i) for i in ids]
        for end in self.stop:
            if end in body:
                body = body[: body.index(end)]
        reasoning = ""
        t = self.tokenizer
        opened, closed = body[:1] == [t.think], t.end_think in body
        if opened or closed:
            at = body.index(t.end_think) if closed else len(body)
            reasoning = t.decode(body[1:at] if opened else body[:at]).removeprefix("\n").removesuffix("\n")
            body = body[at + 1 :]
        text = t.decode(body)
        if closed:
            text = text.removeprefix("\n\n")
        content, calls = _split_calls(text)
        return Message("assistant", content, reasoning, calls)

    def text(self, messages: Sequence[Message | Mapping[str, Any]], tools: Sequence[Tool] = ()) -> str:
        """The conversation as text with its special tokens, for people and for tests."""
        return self.tokenizer.decode(self.open(messages, tools).ids.tolist())

    def _header(self, role: Role) -> Tokens:
        return Tokens.of([self.tokenizer.im_start, *self.tokenizer.encode(f"{role}\n")], role)

    def _body(self, m: Message) -> Tokens:
        """Reasoning and content; text between two special tokens is encoded in one piece, as other programs do."""
        ids: list[int] = []
        content = m.content
        for i, call in enumerate(m.tool_calls):
            text = f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {json.dumps(call.arguments, ensure_ascii=False)}}}'
            content += ("\n" if i or content else "") + f"<tool_call>\n{text}\n</tool_call>"
        if m.reasoning:
            ids += [self._special[THINK], *self.tokenizer.encode(f"\n{m.reasoning}\n"), self._special[END_THINK]]
            content = "\n\n" + content
        return Tokens.of(ids + self.tokenizer.encode(content), m.role, trainable=m.role == "assistant" and m.train)

    def _end(self, m: Message) -> Tokens:
        end = Tokens.of([self.tokenizer.im_end], m.role, trainable=m.role == "assistant" and m.train)
        return end + Tokens.of(self._newline, m.role)

    def _turn(self, m: Message) -> Tokens:
        return Tokens.join((self._header(m.role), self._body(m), self._end(m)))

    def _close(self, so_far: Tokens) -> Tokens:
        """What is missing at the end of a sampled turn: nothing, a newline, or the end token as well."""
        n = len(self._newline)
        ids = so_far.ids.tolist()
        if ids[-1:] == [self.tokenizer.im_end]:
            return Tokens.of(self._newline, "assistant")
        if ids[-n:] == self._newline and ids[-n - 1 : -n] == [self.tokenizer.im_end]:
            return Tokens()
        return Tokens.of([self.tokenizer.im_end, *self._newline], "assistant")


def _split_calls(text: str) -> tuple[str, tuple[ToolCall, ...]]:
    """Content without its well-formed tool calls, and those calls."""
    calls: list[ToolCall] = []

    def take(match: re.Match[str]) -> str:
        try:
            data = json.loads(match.group(1))
            calls.append(ToolCall(str(data["name"]), data["arguments"]))
        except (ValueError, KeyError, TypeError):
            return match.group(0)
        return ""

    return CALL.sub(take, text), tuple(calls)
