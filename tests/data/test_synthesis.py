"""Synthesis: every row has parents, every refusal a reason, and the same questions get the same seeds whatever else is asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from upslope.chat.artifacts import Chats
from upslope.chat.model import Chat, Scripted
from upslope.config import Input, UsageError
from upslope.data import shards
from upslope.data.artifacts import Corpus
from upslope.data.lineage import human_only
from upslope.data.protocol import Rule
from upslope.data.synthesis import Asker, Made, Refused, SeedText, overlap
from upslope.data.synthesizers.instruct import Instruct, final
from upslope.data.synthesizers.persona import Persona
from upslope.data.synthesizers.rephrase import Rephrase, pieces
from upslope.machine.context import Context
from upslope.stages.curate import Curate
from upslope.stages.synthesize import FromCorpus, Synthesize

TEXT = (
    "Copper conducts heat well. It melts at 1085 degrees. People have worked it for ten thousand years, first as found, then from ore. " * 2
)
SEEDS = [SeedText(f"http://a.example/{i}", f"{TEXT} Number {i}.", "docs", "CC0-1.0") for i in range(4)]
SCRIPT = """
import re
def reply(chat):
    said = str(chat.messages[-1].content)
    if said.startswith("Rewrite the passage"):
        body = said.split("Passage:\\n", 1)[1]
        return " ".join(w.upper() if i % 2 else w + "x" for i, w in enumerate(body.split()))
    if said.startswith("Read the text"):
        return "Explain how item %s is smelted and give two hazards." % re.search(r"Number (\\d)", said).group(1)
    if said.startswith(("Rewrite the instruction", "Write another")):
        return said.rsplit("\\n\\n", 1)[1] + " Name the temperature too."
    if said.startswith("Do these two"):
        return "different"
    if said.startswith("Grade the answer"):
        return "9"
    return "By roasting the ore. Answer: 1085"
"""


def answer(**said: Any) -> Any:
    """A model that answers by what a prompt begins with; a value may be a function of the prompt."""

    def reply(chat: Chat) -> str:
        text = str(chat.messages[-1].content)
        for start, value in said.items():
            if text.startswith(start.replace("_", " ")):
                return value(text) if callable(value) else value
        return said.get("other", "A plain reply about copper. Answer: 12")

    return reply


def run(how: Any, reply: Any, seed: int = 0, tries: int = 1, seeds: list[SeedText] | None = None) -> list[Made | Refused]:
    return list(how(SEEDS if seeds is None else seeds, Asker(Scripted(reply), seed, tries)))


def shout(prompt: str) -> str:
    return " ".join(w[::-1] for w in prompt.split("Passage:\n", 1)[1].split())


def test_rephrasing_keeps_length_and_is_no_copy() -> None:
    how = Rephrase(styles=("plain", "terse"))
    made = run(how, answer(Rewrite=shout))
    assert [m.parents for m in made if isinstance(m, Made)] == [(s.id,) for s in SEEDS for _ in range(2)]
    assert {m.how for m in made if isinstance(m, Made)} == {("rephrase/plain",), ("rephrase/terse",)}
    for reply, why in (
        (lambda p: p.split("Passage:\n")[1], "copied"),
        ("Two words.", "length"),
        ("I'm sorry, I cannot do that. " + shout("Passage:\n" + TEXT), "declined"),
        ("", "empty answer"),
    ):
        assert all(isinstance(m, Refused) and why in m.why for m in run(how, answer(Rewrite=reply)))
    assert all(isinstance(m, Made) for m in run(how.replace(copied=1.0), answer(Rewrite=lambda p: p.split("Passage:\n")[1])))
    assert all(isinstance(m, Refused) for m in run(how.replace(longest=0.5), answer(Rewrite=shout)))
    assert all("short seed" in m.why for m in run(how.replace(least=1000), answer(Rewrite=shout)) if isinstance(m, Refused))
    asked: list[str] = []
    long = SeedText("u", "\n\n".join(f"{TEXT} Part {i}." for i in range(3)))
    run(how.replace(piece=300), answer(Rewrite=lambda p: asked.append(p) or shout(p)), seeds=[long])  # type: ignore[func-returns-value]
    assert len(asked) == 6 and "goes on from this text" not in asked[0] and "goes on from this text" in asked[1]
    assert pieces("a\n\nb\n\n\n\nccc", 4) == ["a\n\nb", "ccc"] and overlap("a b c d", "x a b c y") == 0.5


def test_instructions_are_generated_evolved_answered_and_filtered() -> None:
    how = Instruct(rounds=2, operators=("deepen",))
    said = {
        "Read": "Explain how copper is smelted.",
        "Rewrite": lambda p: p.rsplit("\n\n", 1)[1] + " And why?",
        "Do": "Different.",
        "Grade": "8/10",
    }
    made = run(how, answer(**said))
    first = made[0]
    assert isinstance(first, Made) and first.how == ("generate", "evolve/deepen", "evolve/deepen", "grade/8")
    assert [m.content for m in first.turns] == [
        "Explain how copper is smelted. And why? And why?",
        "A plain reply about copper. Answer: 12",
    ]
    same = run(how, answer(**{**said, "Do": "same"}))[0]
    assert isinstance(same, Made) and same.how == ("generate", "grade/8") and same.turns[0].content == "Explain how copper is smelted."
    unchecked = run(how.replace(check=False), answer(**{**said, "Do": "same"}))[0]
    assert isinstance(unchecked, Made) and len(unchecked.how) == 4
    for change, why in (
        ({"Read": "Summarise the text above."}, "generate: mentions the text"),
        ({"Read": "Hm."}, "generate: length"),
        ({"Grade": "3"}, "grade: 3 of 10"),
        ({"Grade": "good"}, "critic: no grade"),
        ({"other": "I'm sorry, but no."}, "answer: none was usable"),
    ):
        assert {m.why[: len(why)] for m in run(how, answer(**{**said, **change})) if isinstance(m, Refused)} == {why}
    assert all(isinstance(m, Refused) for m in run(how.replace(grade=9), answer(**said)))
    assert isinstance(run(how.replace(longest=5), answer(**said))[0], Made)


def test_answers_must_agree_and_personas_ask() -> None:
    said = {"Read": "How much is six times two?", "Grade": "9"}
    votes = iter(["= 12", "Answer: 12.", "it is 13", "= 13", "= 14", "= 15"] * 9)
    how = Instruct(rounds=0, samples=3, agree=0.6)
    found = run(how, lambda chat: next(votes) if str(chat.messages[0].content).startswith("How") else answer(**said)(chat))
    assert isinstance(found[0], Made) and final(str(found[0].turns[1].content)) == "12"
    assert isinstance(found[1], Refused) and found[1].why.startswith("disagreement: 1 of 3")
    prompts: list[str] = []

    def generate(prompt: str) -> str:
        prompts.append(prompt)
        return str(said["Read"])

    asked = run(how.replace(agree=0.0, personas=("A diver.", "A baker.")), answer(**{**said, "Read": generate}))
    assert isinstance(asked[0], Made) and asked[0].how[0] == "generate/persona"
    assert all("A diver." in p or "A baker." in p for p in prompts) and len(prompts) == 4
    assert [final(t) for t in ("so x = 4.", "The answer is **7**", "first\nlast line")] == ["4", "7", "lastline"]


def test_personas_are_told_apart() -> None:
    names = iter(["A smith who sells knives.", "A smith who  sells knives.", "no", "A chemist\nwho tests water."])
    made = run(Persona(), lambda chat: next(names))
    assert [type(m) for m in made] == [Made, Refused, Refused, Refused]
    assert [m.why.partition(":")[0] for m in made[1:] if isinstance(m, Refused)] == ["repeated", "form", "form"]


def test_a_question_has_the_same_seed_whatever_else_is_asked_and_is_asked_again() -> None:
    seen: dict[str, list[int]] = {}

    def reply(chat: Chat) -> str:
        name = re.findall(r"Number (\d)", str(chat.messages[0].content))[0]
        seen.setdefault(name, []).append(chat.seed)
        return "" if len(seen[name]) < 3 else f"A person who likes copper number {name}."

    assert all(isinstance(m, Made) for m in run(Persona(), reply, seed=5, tries=3))
    assert all(len(set(s)) == 3 for s in seen.values()) and len({s[0] for s in seen.values()}) == 4
    before, alone = dict(seen), {}
    seen.clear()
    run(Persona(), reply, seed=5, tries=3, seeds=SEEDS[2:3])
    alone = dict(seen)
    assert alone["2"] == before["2"]
    seen.clear()
    run(Persona(), reply, seed=6, tries=3)
    assert seen["2"] != before["2"]


def test_the_stage_makes_corpora_and_chats_with_parents(tmp_path: Path) -> None:
    (tmp_path / "answers.py").write_text(SCRIPT)
    speaker = f"{tmp_path / 'answers.py'}:reply"
    corpus = Corpus.from_texts(
        tmp_path / "c", [s.text for s in SEEDS], "docs", urls=[s.id for s in SEEDS], licence="CC0-1.0", provenance="crawl"
    )
    ctx = Context.scratch(tmp_path / "k", docs=corpus)
    view = Curate(corpus=Input(stage="docs"), rules=(Rule(name="some", keep="doc != 1"),)).run(ctx)

    def made(folder: str, **form: Any) -> tuple[Any, Context]:
        ctx = Context.scratch(tmp_path / folder, docs=view)
        form = {"corpus": "docs", "speaker": speaker, **form}
        return Synthesize(form=FromCorpus(**form)).run(ctx), ctx

    texts, ctx = made("a", how="rephrase", source="again")
    rows = texts.table(("url", "parents", "provenance", "licence")).to_pylist()
    assert [r["parents"] for r in rows] == [[SEEDS[i].id] for i in (0, 2, 3)] and {r["licence"] for r in rows} == {"CC0-1.0"}
    assert ctx.facts["seeds"] == 3 and ctx.facts["refused"] == {} and human_only([corpus]) == []
    assert human_only([corpus, texts]) == ["again/0", "again/1", "again/2"]
    chats, ctx = made("b", how={"kind": "instruct", "rounds": 1}, source="asked", limit=2)
    assert isinstance(chats, Chats) and len(chats) == 2 and [c.meta["parents"] for c in chats] == [[SEEDS[0].id], [SEEDS[2].id]]
    assert "smelted" in str(next(iter(chats)).messages[0].content)
    _, ctx = made("c", how={"kind": "instruct", "grade": 9, "rounds": 0}, source="asked")
    assert ctx.facts["calls"] == 9
    (tmp_path / "none.py").write_text(SCRIPT.replace('return "9"', 'return "well"'))
    with pytest.raises(UsageError, match=r"nothing usable was made from 3 seeds\nhttp://a.example/0: critic"):
        made("d", how={"kind": "instruct", "rounds": 0}, speaker=f"{tmp_path / 'none.py'}:reply")
    assert shards.read(tmp_path / "b" / "data" / "rejects.parquet").num_rows == 0
