from pathlib import Path

import pytest

from upslope.chat.artifacts import Chat, Chats, Pair, Pairs
from upslope.chat.messages import Message, ToolCall
from upslope.config import UsageError
from upslope.machine.files import digest_path

CHATS = [
    Chat(
        "a",
        (Message("user", "sort: 9 3"), Message("assistant", "3 9", "9 39", train=False)),
        {"source": "s", "parents": ["t1"], "truth": {"x": [1]}},
    ),
    Chat("b", (Message("user", "é"), Message("assistant", "", "", (ToolCall("f", {"q": None}),)))),
]


def test_chats_come_back_and_are_the_same_bytes_again(tmp_path: Path) -> None:
    chats = Chats.write(tmp_path / "1", CHATS)
    Chats.write(tmp_path / "2", CHATS)
    assert digest_path(tmp_path / "1") == digest_path(tmp_path / "2")
    assert len(chats) == 2
    back = list(chats)
    assert [c.messages for c in back] == [c.messages for c in CHATS]
    assert back[0].meta == CHATS[0].meta
    assert back[1].meta == {"source": "", "parents": [], "truth": None}
    assert chats.rows()[0]["messages"][1]["reasoning_content"] == "9 39"


def test_pairs_come_back_by_split(tmp_path: Path) -> None:
    prompt = (Message("system", "s"), Message("user", "u"))
    good, bad = Message("assistant", "3 9", "t"), Message("assistant", "9 3")
    pairs = Pairs.write(tmp_path, [Pair("p", prompt, good, bad, "own"), Pair("q", prompt, bad, good, "own", "heldout")])
    assert list(pairs) == [Pair("p", prompt, good, bad, "own", "train"), Pair("q", prompt, bad, good, "own", "heldout")]
    assert [p.id for p in pairs.read("heldout")] == ["q"]
    assert len(pairs) == 2


def test_bad_rows_are_refused(tmp_path: Path) -> None:
    user, reply, other = Message("user", "u"), Message("assistant", "a"), Message("assistant", "b")
    for pair in (Pair("p", (user,), reply, reply, ""), Pair("p", (user,), user, reply, ""), Pair("p", (user,), reply, other, "", "test")):  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            Pairs.write(tmp_path, [pair])
    for chats in ([Chat("a", ())], [CHATS[0], CHATS[0]]):
        with pytest.raises(UsageError):
            Chats.write(tmp_path, chats)
    assert not list(tmp_path.iterdir())
