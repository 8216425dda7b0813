"""A rewrite keeps rows, numbers, edges and decisions; only the text and what describes it change. Dear steps see the living only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest

from tests.data.make import files_of
from upslope.config import Input, UsageError
from upslope.data import shards
from upslope.data.artifacts import Corpus
from upslope.data.protocol import Annotate as AnnotateStep
from upslope.data.protocol import Rewrite as RewriteStep
from upslope.data.protocol import Rule
from upslope.machine.context import Context
from upslope.stages.annotate import Annotate
from upslope.stages.curate import Curate
from upslope.stages.rewrite import Rewrite

SEEN: list[str] = []


class Loud(RewriteStep):
    """Upper case; `mark` is put at the end; what is shorter than `least` becomes empty."""

    kind: ClassVar[str] = "loud"
    gives: ClassVar[Mapping[str, str]] = {"grew": "int32"}

    mark: str = "!"
    least: int = 3
    wrong: str = ""

    def __call__(self, batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array | None, pa.RecordBatch]:
        old = batch["text"].to_pylist()
        new = ["" if len(t) < self.least else t.upper() + self.mark for t in old]
        if self.wrong == "rows" and new:
            new = new[1:]
        spans = pa.array([[{"start": 1, "end": 2, "kind": 0}] for _ in new], pa.list_(shards.SPAN)) if self.wrong == "spans" else None
        grew = [len(n) - len(o) for n, o in zip(new, old)]
        return pa.array(new, pa.string()), spans, pa.RecordBatch.from_pydict({"grew": pa.array(grew, pa.int32())})


class Length(AnnotateStep):
    """How long a text is; remembers what it was shown."""

    kind: ClassVar[str] = "length"
    gives: ClassVar[Mapping[str, str]] = {"n": "int32"}

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        SEEN.extend(batch["text"].to_pylist())
        return pa.RecordBatch.from_pydict({"n": pa.array([len(t) for t in batch["text"].to_pylist()], pa.int32())})


def run(stage: Annotate | Curate | Rewrite, folder: Path, corpus: Corpus) -> Corpus:
    made = stage.run(Context.scratch(folder, docs=corpus))
    assert isinstance(made, Corpus)
    return made


@pytest.fixture
def view(tmp_path: Path) -> Corpus:
    """Eight texts, of which the even ones live."""
    corpus = Corpus.from_texts(tmp_path / "c", [f"text {i}" if i != 6 else "t6" for i in range(8)], "s")
    noted = run(Annotate(corpus=Input(stage="docs"), steps=(Length(),)), tmp_path / "n", corpus)
    return run(Curate(corpus=Input(stage="docs"), rules=(Rule(name="even", keep="doc % 2 = 0"),)), tmp_path / "k", noted)


def test_a_rewrite_keeps_everything_but_the_text(view: Corpus, tmp_path: Path) -> None:
    made = run(Rewrite(corpus=Input(stage="docs"), step=Loud()), tmp_path / "r", view)
    texts = made.table(("text",), every=True)["text"].to_pylist()
    assert texts == ["TEXT 0!", "text 1", "TEXT 2!", "text 3", "TEXT 4!", "text 5", "", "text 7"]
    assert made.table(("bytes",), every=True)["bytes"].to_pylist() == [len(t) for t in texts]
    np.testing.assert_array_equal(made.kept(), view.kept())
    assert made.table(("loud.grew",), every=True)["loud.grew"].to_pylist() == [1, None, 1, None, 1, None, -2, None]
    assert list(made.fields()) == ["loud"]  # what was computed on the old text does not describe the new one
    assert made.why(1)[0].failures[0].value == "doc=1" and made.funnel()[-1] == {
        "step": "rewrite",
        "what": "loud",
        "docs": 4,
        "bytes_in": 20,
        "bytes": 21,
        "changed": 4,
    }
    later = run(Annotate(corpus=Input(stage="docs"), steps=(Length(),)), tmp_path / "l", made)
    again = run(Curate(corpus=Input(stage="docs"), rules=(Rule(name="some", keep="length.n > 0"),)), tmp_path / "a", later)
    assert len(again) == 3 and again.why(6)[0].failures[0].value == "n=0" and [f.rule for f in again.why(3)[0].failures] == ["even"]
    assert files_of(run(Rewrite(corpus=Input(stage="docs"), step=Loud()), tmp_path / "r2", view).path) == files_of(made.path)
    whole = run(Rewrite(corpus=Input(stage="docs"), step=Loud(mark="?"), living=False), tmp_path / "w", view)
    assert whole.table(("text",), every=True)["text"].to_pylist()[1] == "TEXT 1?"


def test_a_rewriter_that_loses_rows_or_spans_is_an_error(view: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gave 3 texts for 4"):
        run(Rewrite(corpus=Input(stage="docs"), step=Loud(wrong="rows")), tmp_path / "a", view)
    with pytest.raises(UsageError, match="the spans do not cover the 7 bytes"):
        run(Rewrite(corpus=Input(stage="docs"), step=Loud(wrong="spans")), tmp_path / "b", view)


def test_dear_steps_see_the_living_only(view: Corpus, tmp_path: Path) -> None:
    SEEN.clear()
    made = run(Annotate(corpus=Input(stage="docs"), steps=(Length(name="dear"),), living=True), tmp_path / "d", view)
    assert made.table(("dear.n",), every=True)["dear.n"].to_pylist() == [6, None, 6, None, 6, None, 2, None]
    assert "text 2" in SEEN and "text 3" not in SEEN
    cheap = run(Annotate(corpus=Input(stage="docs"), steps=(Length(name="dear"),)), tmp_path / "e", view)
    assert cheap.table(("dear.n",), every=True)["dear.n"].to_pylist() == [6, 6, 6, 6, 6, 6, 2, 6]
