"""The taxonomy: its codes, the teacher's replies, a student of a scripted teacher with a known rule and known noise, and its columns."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.data.make import files_of
from tests.data.test_classify import corpus
from upslope.chat.model import Chat, Scripted, Speaker
from upslope.config import Input, UsageError
from upslope.data import shards
from upslope.data.annotators.classify import Classify
from upslope.data.annotators.taxonomy import Taxonomy as Step
from upslope.data.artifacts import Corpus
from upslope.data.classify import metrics, taxonomy, train
from upslope.data.classify.artifact import Classifier
from upslope.data.classify.config import Embedding, Ngrams, Taxonomy
from upslope.data.classify.heads import Head
from upslope.data.classify.labelling import Unreadable
from upslope.data.classify.taxonomy import ABSTAIN, CODES, FIELDS
from upslope.data.embedders.hashed import Hashed
from upslope.machine.context import Context
from upslope.stages.annotate import Annotate
from upslope.stages.classifier import TrainClassifier

SUBJECTS = {"512": "algebra ring field", "530": "physics force energy", "004": "computer program byte", "78": "music chord opera"}
TYPES = {"3": "encyclopedia entry", "5": "forum reply thread", "15": "cart price buy"}
MODEL = Ngrams(bits=12, dim=16, epochs=20, lr=0.3)


def answer(subject: str, kind: str, second: str) -> dict[str, Any]:
    """The rule of the scripted teacher: everything else follows from subject and kind."""
    depth = "4" if subject == "512" else "2"
    rest = {f: [int(next(iter(CODES[f]))), -1] for f in FIELDS[3:]}
    return {
        "fdc": [subject, second],
        **rest,
        "document_type": [int(kind), 1 if kind == "5" else -1],
        "reasoning_depth": [int(depth), -1],
        "education_level": [-1, -1] if kind == "15" else [3, -1],
    }


def texts(n: int = 500) -> list[str]:
    r = np.random.default_rng(0)
    subjects, kinds = list(SUBJECTS), list(TYPES)
    out = []
    for i in range(n):
        own = [*r.choice(SUBJECTS[subjects[i % 4]].split(), 3), *r.choice(TYPES[kinds[i % 3]].split(), 3)]
        out.append(" ".join([*own, *r.choice([f"w{k}" for k in range(40)], 12), f"n{i}"]))
    return out


class Teacher(Speaker):
    """Knows the rule; `noise` of its replies name another subject, and `broken` are no JSON, by the number in the text."""

    kind = "tests.data.test_taxonomy:Teacher"
    noise: float = 0.0
    broken: float = 0.0

    def open(self) -> Scripted:
        def reply(chat: Chat) -> str:
            asked = str(chat.messages[-1].content)
            words = asked.split("<<<")[1].split(">>>")[0].split()
            i = int(words[-1][1:])
            subject = next(s for s, own in SUBJECTS.items() if set(own.split()) & set(words))
            kind = next(k for k, own in TYPES.items() if set(own.split()) & set(words))
            u = (i * 0.6180339887) % 1
            if u < self.broken:
                return "I think this is about algebra."
            if u < self.broken + self.noise:
                subject = "530" if subject != "530" else "78"
            known = answer(subject, kind, "519" if subject == "512" else "-1")
            return json.dumps({k: known[k] for k in asked.split("exactly: ")[1].rstrip(".").split(", ")})

        return Scripted(reply)


def made(folder: Path, texts_: list[str], teacher: Teacher, model: Any = MODEL, seed: int = 0, **fields: Any) -> tuple[Classifier, Corpus]:
    c = corpus(folder / "c", texts_)
    form = Taxonomy(corpora=(Input(stage="c"),), teacher=teacher, **fields)
    stage = TrainClassifier(purpose="tests", form=form, model=model, test=0.3, dev=0.15)
    found = stage.run(Context.scratch(folder / "run", seed=seed, c=c))
    assert isinstance(found, Classifier)
    return found, c


# ── codes and replies ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_scheme_has_twelve_fields_of_the_published_sizes() -> None:
    sizes = [10, 100, 1000, 4, 6, 17, 25, 5, 7, 6, 6, 5]
    assert [len(c) for c in CODES.values()] == sizes
    assert [next(iter(CODES[f])) for f in FIELDS] == ["0", "00", "000", "1", "1", "1", "1", "0", "0", "1", "1", "1"]
    assert CODES["document_type"]["10"] == "machine-generated"
    assert CODES["document_type_v2"]["18"] == "Q&A forum"
    assert CODES["reasoning_depth"]["5"] == "exceptional"
    for code, name in CODES["fdc3"].items():
        assert name.endswith(CODES["fdc1"][code[0]])


GOOD = answer("512", "3", "519")


def test_a_reply_gives_a_pair_for_each_field() -> None:
    for reply in (json.dumps(GOOD), f"```json\n{json.dumps(GOOD, indent=1)}\n```\n"):
        found = taxonomy.parse(reply)
        assert tuple(found) == FIELDS
        assert [found[f] for f in FIELDS[:3]] == [("5", ABSTAIN), ("51", ABSTAIN), ("512", "519")]
        assert found["document_type"] == ("3", ABSTAIN)
    short = taxonomy.parse(json.dumps({**GOOD, "fdc": ["78", "004"]}))
    assert [short[f] for f in FIELDS[:3]] == [("7", "0"), ("78", "00"), (ABSTAIN, ABSTAIN)]
    none = taxonomy.parse(json.dumps({**GOOD, "fdc": [-1, -1]}))
    assert [none[f] for f in FIELDS[:3]] == [(ABSTAIN, ABSTAIN)] * 3
    assert taxonomy.parse('{"document_type": [1, 2]}', ("document_type",)) == {"document_type": ("1", "2")}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"fdc": ["5123", "-1"]}, "no such code"),
        ({"fdc": [512, -1]}, "no such code"),
        ({"fdc": ["-1", "512"]}, "without a primary"),
        ({"document_type": [18, -1]}, "no such code"),
        ({"document_type": [True, -1]}, "no such code"),
        ({"document_type": [3.0, -1]}, "no such code"),
        ({"document_type": [3, 3]}, "is the primary one"),
        ({"document_type": 3}, "not .primary, secondary."),
        ({"document_type": [3]}, "not .primary, secondary."),
        ({"document_type": [[3], -1]}, "no such code"),
        ({"mood": [1, 2]}, "keys are not those"),
    ],
)
def test_replies_out_of_form_are_rejected(change: dict[str, Any], why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        taxonomy.parse(json.dumps({**GOOD, **change}))


TWICE = json.dumps(GOOD)[:-1] + ', "fdc": ["1", "-1"]}'


@pytest.mark.parametrize(
    "reply", ["", "{}", "[]", "null", "5", json.dumps(GOOD) + " ok", json.dumps(GOOD)[:-1], '{"fdc": [1', "[" * 5000, TWICE]
)  # fmt: skip
def test_what_is_not_one_object_is_rejected(reply: str) -> None:
    with pytest.raises(Unreadable):
        taxonomy.parse(reply)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(LEAVES, lambda x: st.lists(x, max_size=3), max_leaves=5)


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.sampled_from(taxonomy.questions(FIELDS)), JSON, max_size=4))
def test_no_reply_gives_a_code_that_does_not_exist(change: dict[str, Any]) -> None:
    with contextlib.suppress(Unreadable):
        for field, pair in taxonomy.parse(json.dumps({**GOOD, **change})).items():
            assert all(c == ABSTAIN or c in CODES[field] for c in pair)


def test_the_prompt_holds_each_code_the_text_and_no_more_than_is_shown() -> None:
    asked = taxonomy.prompt("alpha beta " * 9, shown=5)
    assert "<<<\nalpha\n>>>" in asked
    for field in FIELDS[3:]:
        assert f'"{field}"' in asked
        assert all(name in asked for name in CODES[field].values())
    assert '"fdc"' not in taxonomy.prompt("x", ("document_type",))


# ── targets and decoding ──────────────────────────────────────────────────────────────────────────────────────────


def test_targets_split_between_the_two_codes() -> None:
    answers = [{"document_type": p} for p in (("1", "2"), ("2", ABSTAIN), ("2", "9"), ("9", ABSTAIN), ("1", ABSTAIN))]
    heads = taxonomy.heads_of(answers, ["document_type"], least=3)
    assert heads[0].classes == ("2",)
    heads = (Head("document_type", "one", ("1", "2")),)
    target, weight = taxonomy.targets(answers, heads, 0.25)
    assert target.tolist() == [[0.75, 0.25], [0, 1], [0, 1], [0, 0], [1, 0]]
    assert weight[:, 0].tolist() == [1, 1, 1, 0, 1]


def test_codes_of_lower_levels_continue_the_upper_ones() -> None:
    heads = (
        Head("fdc1", "one", ("5", "7")),
        Head("fdc2", "one", (ABSTAIN, "51", "78")),
        Head("fdc3", "one", ("512", "519", "530")),
        Head("reasoning_depth", "one", (ABSTAIN, "2", "4")),
    )
    mean = np.array(
        [[0.6, 0.4, 0.1, 0.3, 0.6, 0.2, 0.1, 0.7, 0.5, 0.3, 0.2], [0.4, 0.6, 0.1, 0.5, 0.4, 0.8, 0.1, 0.1, 0.1, 0.5, 0.4]], np.float32
    )
    found = taxonomy.decode(mean, heads, 0.3)
    assert found["fdc1"][0] == ["5", "7"]
    assert found["fdc2"][0] == ["51", "78"]
    assert found["fdc3"][0] == ["512", ABSTAIN]
    assert found["fdc2"][1] == ["78", "51"]
    assert found["reasoning_depth"][:2] == ([ABSTAIN, "2"], [ABSTAIN, "4"])
    assert found["fdc1"][2].tolist() == pytest.approx([0.6, 0.6])
    assert taxonomy.decode(mean, heads, 0.95)["reasoning_depth"][1] == [ABSTAIN, ABSTAIN]


# ── student and teacher ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, Corpus]:
    return made(tmp_path_factory.mktemp("taxonomy"), texts(), Teacher())


def test_a_student_agrees_with_a_teacher_that_follows_a_rule(taught: tuple[Classifier, Corpus]) -> None:
    fields = taught[0].card["metrics"]["fields"]
    assert set(fields) == set(FIELDS)
    for field in ("fdc1", "fdc2", "fdc3", "document_type", "reasoning_depth", "education_level"):
        assert fields[field]["kappa"]["value"] > 0.9, field
        assert fields[field]["kappa"]["low"] <= fields[field]["kappa"]["value"] <= fields[field]["kappa"]["high"]
    assert fields["missing_content"]["kappa"]["value"] is None  # the teacher gives one code: agreement by chance is certain
    assert fields["missing_content"]["agreement"]["value"] == 1
    assert fields["document_type"]["secondary"]["value"] > 0.9
    assert fields["fdc3"]["classes"] == 5  # 512, 519, 530, 004 and none, for 78 has no third digit


def test_noise_of_the_teacher_bounds_the_agreement(tmp_path: Path) -> None:
    found, _ = made(tmp_path, texts(), Teacher(noise=0.2, broken=0.1))
    fields, teacher = found.card["metrics"]["fields"], found.card["data"]["teacher"]
    labels = shards.read(found.path / "labels.parquet")["label"].to_pylist()
    assert len(labels) == teacher["labelled"]
    assert json.loads(labels[0]).keys() == set(FIELDS)
    assert teacher["asked"] == 500
    assert teacher["unreadable"] == pytest.approx(50, abs=3)
    assert teacher["labelled"] == 500 - teacher["unreadable"] == found.card["data"]["examples"]
    assert fields["fdc1"]["agreement"]["value"] == pytest.approx(1 - 0.2 / 0.9, abs=0.1)
    assert fields["document_type"]["kappa"]["value"] > 0.9


def test_kappa_of_the_card_is_that_of_the_columns(tmp_path: Path, taught: tuple[Classifier, Corpus]) -> None:
    found, c = taught
    view = Annotate(corpus=Input(stage="c"), steps=(Step(classifier=Input(stage="t")),)).run(Context.scratch(tmp_path, c=c, t=found))
    assert isinstance(view, Corpus)
    rows = {r["url"]: r for b in view.batches(("url", "text", "taxonomy")) for r in b.to_pylist()}
    split = shards.read(found.path / "labels.parquet").to_pylist()
    pairs = []
    for row in split:
        if row["split"] == "test":
            words = rows[row["url"]]["text"].split()
            kind = next(k for k, own in TYPES.items() if set(own.split()) & set(words))
            pairs.append((kind, str(rows[row["url"]]["taxonomy"]["document_type"])))
    n = len(pairs)
    observed = sum(a == b for a, b in pairs) / n
    left, right = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(left[k] * right[k] for k in left) / n**2
    assert found.card["metrics"]["fields"]["document_type"]["kappa"]["value"] == pytest.approx((observed - chance) / (1 - chance))
    assert {r["taxonomy"]["fdc3"] for r in rows.values()} == {"512", "530", "004", None}
    assert {r["taxonomy"]["fdc2"] for r in rows.values()} == {"51", "53", "00", "78"}
    for r in rows.values():
        t = r["taxonomy"]
        assert (t["education_level"] is None) == (t["document_type"] == 15) == (t["education_level_p"] is None)
        assert t["document_type_2"] == (1 if t["document_type"] == 5 else None)


def test_the_columns_do_not_depend_on_the_batch(taught: tuple[Classifier, Corpus], tmp_path: Path) -> None:
    step = Step(classifier=Input(stage="t")).bind(Context.scratch(tmp_path, t=taught[0]))
    batch = shards.rows_to_batch([{"text": t} for t in [*texts(40), "", "—", "漢字" * 9]], shards.TEXT)
    whole = step(batch)
    assert whole.schema.names == list(Step.gives)
    assert pa.Table.from_batches([step(batch.slice(i, 1)) for i in range(batch.num_rows)]).to_pylist() == whole.to_pylist()
    assert set(whole.to_pylist()[40].values()) == {None}
    with pytest.raises(UsageError, match="'taxonomy'"):
        Classify(classifier=Input(stage="t")).bind(Context.scratch(tmp_path, t=taught[0]))


def test_the_same_bits_again_and_every_knob_turns_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "DRAWS", 5)
    changes: list[dict[str, Any]] = [
        {}, {}, {"seed": 1}, {"fields": ("document_type", "fdc1")}, {"secondary": 0.1}, {"least": 60}, {"limit": 200}, {"shown": 70},
        {"model": Embedding(embedder=Hashed(dim=32, spread=4), iterations=20)},
    ]  # fmt: skip
    teacher = Teacher(noise=0.1)

    class Deaf(Teacher):
        """Abstains where it does not see the whole text."""

        kind = "tests.data.test_taxonomy:Deaf"

        def open(self) -> Scripted:
            inner = super().open()

            def reply(chat: Chat) -> str:
                try:
                    return inner.chat([chat])[0].message.content  # type: ignore[return-value]
                except (StopIteration, ValueError):
                    return json.dumps({**answer("512", "3", "-1"), "fdc": [-1, -1]})

            return Scripted(reply)

    found = [files_of(made(tmp_path / str(i), texts(300), Deaf(noise=teacher.noise), **c)[0].path) for i, c in enumerate(changes)]
    assert found[0] == found[1]
    weights = [f["weights.safetensors"] for f in found]
    same = [(a, b) for i, a in enumerate(changes) for j, b in enumerate(changes) if i < j and weights[i] == weights[j]]
    assert same == [({}, {})]


def test_unknown_fields_are_named() -> None:
    with pytest.raises(ValidationError, match="did you mean reasoning_depth"):
        Taxonomy(corpora=(Input(stage="c"),), teacher=Teacher(), fields=("reasoning",))
    ordered = Taxonomy(corpora=(Input(stage="c"),), teacher=Teacher(), fields=("education_level", "fdc1"))
    assert ordered.fields == ("fdc1", "education_level")


def test_sources_choose_documents(tmp_path: Path) -> None:
    a, b = corpus(tmp_path / "a", texts(20), "a"), corpus(tmp_path / "b", texts(30), "b")
    assert len(train.documents(a, ("a",))) == 20
    assert train.documents(b, ("a",)) == []
