from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.chat.messages import ROLES, Message, Privilege, Role, Tokens, Tool, ToolCall
from upslope.chat.render import ChatML
from upslope.config import UsageError
from upslope.tokens.template import SPECIALS

TOOL = Tool("look_up", "finds é", {"type": "object", "properties": {"q": {"type": "string"}}})
TALK = (
    Message("system", "the secret is fox. never say it."),
    Message("developer", "be short"),
    Message("user", "sort: 9 3 7"),
    Message("assistant", "", "i should look", (ToolCall("look_up", {"q": "ü 9"}), ToolCall("look_up", {}))),
    Message("tool", '{"found": 3}'),
    Message("assistant", "3 7 9", "9 39 379"),
    Message("user", "thanks"),
    Message("assistant", "welcome"),
)

WORDS = st.lists(st.sampled_from(["sort", ":", " 9", "🙂", "\n", " ", *SPECIALS, "user", "assistant\n"]), max_size=6).map("".join)
PLAIN = st.text(alphabet="abc 12:\n🙂", max_size=12).filter(lambda s: not s[:1].isspace())


def turns(content: st.SearchStrategy[str]) -> st.SearchStrategy[list[Message]]:
    def build(parts: list[tuple[Role, str, str]]) -> list[Message]:
        return [Message(r, c, t if r == "assistant" else "") for r, c, t in parts]

    return st.lists(st.tuples(st.sampled_from(ROLES), content, content), min_size=1, max_size=5).map(build)


def test_golden_text(chatml: ChatML) -> None:
    """Written by hand from the ChatML and Qwen3 formats."""
    assert chatml.text(TALK[2:3]) == "<|im_start|>user\nsort: 9 3 7<|im_end|>\n<|im_start|>assistant\n"
    assert chatml.text([TALK[2], TALK[5]]) == (
        "<|im_start|>user\nsort: 9 3 7<|im_end|>\n<|im_start|>assistant\n<think>\n9 39 379\n</think>\n\n3 7 9<|im_end|>\n"
    )
    assert chatml.text([TALK[6], TALK[7]]) == "<|im_start|>user\nthanks<|im_end|>\n<|im_start|>assistant\nwelcome<|im_end|>\n"
    assert chatml.text([TALK[3]]).endswith(
        '</think>\n\n<tool_call>\n{"name": "look_up", "arguments": {"q": "ü 9"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "look_up", "arguments": {}}\n</tool_call><|im_end|>\n'
    )


def peer_of(chatml: ChatML) -> Any:
    """Peer: transformers 5.23."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(str(chatml.tokenizer.path))


@pytest.mark.parametrize("tools", [(), (TOOL, Tool("noop"))])
@pytest.mark.parametrize("talk", [TALK, TALK[1:], TALK[:3], TALK[2:3], TALK[2:6]])
def test_the_jinja_template_renders_the_same(chatml: ChatML, talk: tuple[Message, ...], tools: tuple[Tool, ...]) -> None:
    peer = peer_of(chatml)
    kwargs = {"tools": [t.to_json() for t in tools] or None, "add_generation_prompt": talk[-1].role != "assistant"}
    rows = [m.to_json() for m in talk]
    assert peer.apply_chat_template(rows, tokenize=False, **kwargs) == chatml.text(talk, tools)
    assert peer.apply_chat_template(rows, tokenize=True, return_dict=False, **kwargs) == chatml.open(talk, tools).ids.tolist()


def test_the_jinja_template_on_many_conversations(chatml: ChatML) -> None:
    peer = peer_of(chatml)

    @given(talk=turns(PLAIN))
    @settings(max_examples=60, deadline=None)
    def same(talk: list[Message]) -> None:
        rows, opens = [m.to_json() for m in talk], talk[-1].role != "assistant"
        assert peer.apply_chat_template(rows, tokenize=False, add_generation_prompt=opens) == chatml.text(talk)
        ids = peer.apply_chat_template(rows, tokenize=True, return_dict=False, add_generation_prompt=opens)
        assert ids == chatml.open(talk).ids.tolist()

    same()


@given(talk=turns(WORDS), cut=st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_a_rendering_is_a_prefix_of_its_continuation(chatml: ChatML, talk: list[Message], cut: int) -> None:
    head, tail = talk[:cut], talk[cut:]
    so_far = chatml.open(head)
    if not tail:
        return
    if head[-1].role != "assistant" and tail[0].role != "assistant":
        with pytest.raises(UsageError, match="turn is open"):
            chatml.extend(so_far, tail)
        return
    grown = chatml.extend(so_far, tail)
    assert grown == chatml.open(talk)
    assert grown[: len(so_far)].ids.tolist() == so_far.ids.tolist()


@given(text=WORDS)
@settings(max_examples=80, deadline=None)
def test_text_cannot_forge_turns(chatml: ChatML, text: str) -> None:
    talk = [Message("system", text), Message("user", text), Message("assistant", text, text or "x")]
    special = [i for i in chatml.open(talk).ids.tolist() if i in chatml.tokenizer.special.values()]
    t = chatml.tokenizer
    assert special == [t.im_start, t.im_end, t.im_start, t.im_end, t.im_start, t.think, t.end_think, t.im_end]


def test_provenance_and_what_is_trained(chatml: ChatML) -> None:
    tokens = chatml.open(TALK)
    assert tokens.ids.dtype == np.int32
    trained = chatml.tokenizer.decode(tokens.ids[tokens.trainable].tolist())
    assert trained == (
        '<think>\ni should look\n</think>\n\n<tool_call>\n{"name": "look_up", "arguments": {"q": "ü 9"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "look_up", "arguments": {}}\n</tool_call><|im_end|>'
        "<think>\n9 39 379\n</think>\n\n3 7 9<|im_end|>welcome<|im_end|>"
    )
    for role, privilege in (("system", 4), ("developer", 3), ("user", 2), ("assistant", 1), ("tool", 0)):
        mine = tokens.role == ROLES.index(role)  # type: ignore[arg-type]
        assert mine.any()
        assert (tokens.privilege[mine] == privilege).all()
    assert Privilege.SYSTEM > Privilege.DEVELOPER > Privilege.USER > Privilege.ASSISTANT > Privilege.TOOL
    assert not chatml.open([Message("assistant", "3 7 9", train=False)]).trainable.any()
    assert not chatml.open(TALK[:3], think=True).trainable.any()


def test_forced_thinking_opens_the_block(chatml: ChatML) -> None:
    plain, forced = chatml.open(TALK[2:3]), chatml.open(TALK[2:3], think=True)
    assert forced[: len(plain)] == plain
    assert chatml.tokenizer.decode(forced.ids[len(plain) :].tolist()) == "<think>\n"
    thought = chatml.open(TALK[2:3] + TALK[5:6]).ids.tolist()
    assert thought[: len(forced)] == forced.ids.tolist()  # just what a model that chose to think would have written
    with pytest.raises(UsageError, match="think = True"):
        chatml.open(TALK, think=True)


def test_parse_reads_what_was_sampled(chatml: ChatML) -> None:
    t = chatml.tokenizer
    untagged, blanks = Message("assistant", "<think>\nnot a tag\n</think>\n\n1"), Message("assistant", "\n\nx", "a\n\nb")
    for reply in (TALK[3], TALK[5], TALK[7], untagged, blanks):
        prompt = chatml.open(TALK[2:3])
        sampled = chatml.extend(prompt, [reply]).ids[len(prompt) :].tolist()
        parsed = chatml.parse(sampled[: sampled.index(t.im_end) + 1])
        assert parsed == reply
    think, done = t.think, t.end_think
    assert chatml.parse([think, *t.encode("\n9 39")]) == Message("assistant", "", "9 39")  # cut off while thinking
    assert chatml.parse([*t.encode("9 39\n"), done, *t.encode("\n\n3 9"), t.im_end]) == Message("assistant", "3 9", "9 39")  # forced
    assert chatml.parse([*t.encode("3 9"), t.eos, *t.encode("more")]) == Message("assistant", "3 9")
    assert chatml.parse([]) == Message("assistant", "")
    broken = "<tool_call>\n{not json}\n</tool_call>"
    assert chatml.parse(t.encode(broken)) == Message("assistant", broken)


def test_sampled_ids_are_kept_as_they_are(chatml: ChatML) -> None:
    """Ids that no encoder would give (every character apart) must survive the next turn."""
    t = chatml.tokenizer
    odd = [i for c in "sort" for i in t.encode(c)]
    assert odd != t.encode("sort")
    prompt = chatml.open(TALK[2:3])
    for end in ([], [t.im_end]):  # cut off by length, or ended by the model
        said = prompt + Tokens.of([*odd, *end], "assistant", trainable=True)
        grown = chatml.extend(said, [Message("user", "thanks")])
        assert grown[: len(said)] == said
        assert t.decode(grown.ids.tolist()) == chatml.text([TALK[2], Message("assistant", "sort"), Message("user", "thanks")])
        closing = grown[len(said) :]
        assert not closing.trainable.any()


def test_bad_conversations_are_refused(chatml: ChatML) -> None:
    for call in (
        lambda: chatml.open([]),
        lambda: chatml.extend(chatml.open(TALK), []),
        lambda: Message("boss", "x"),  # type: ignore[arg-type]
        lambda: Message("user", "x", "thought"),
    ):
        with pytest.raises(UsageError):
            call()
