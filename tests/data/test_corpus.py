"""A corpus is a view: it points, numbers documents, guards its sidecars, and can be made from strings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upslope.config import Input, UsageError
from upslope.data.annotators.gopher import Gopher
from upslope.data.artifacts import SHARD_ROWS, Corpus
from upslope.machine.context import Context
from upslope.stages.annotate import Annotate


def noted(folder: Path, corpus: Corpus, *steps: Any) -> Corpus:
    ctx = Context.scratch(folder, docs=corpus)
    made = Annotate(corpus=Input(stage="docs"), steps=steps).run(ctx)
    assert isinstance(made, Corpus)
    return made


def test_a_corpus_of_strings(tmp_path: Path) -> None:
    texts = [f"text {i} é" for i in range(SHARD_ROWS + 5)]
    parents = [[f"task/{i}"] for i in range(len(texts))]
    corpus = Corpus.from_texts(tmp_path / "c", iter(texts), "worked", parents=parents, licence="CC0-1.0")
    again = Corpus.load(tmp_path / "c")
    assert list(again.texts()) == texts == list(again.texts("worked")) and list(again.texts("other")) == []
    assert len(corpus) == len(texts) and corpus.sources() == ("worked",) and corpus.licences() == ("CC0-1.0",) and corpus.refs() == ()
    rows = [r for b in corpus.batches(("doc", "parents", "provenance", "url", "spans")) for r in b.to_pylist()]
    last = len(texts) - 1
    assert rows[-1] == {"doc": 1 << 32 | 4, "parents": [f"task/{last}"], "provenance": "synthetic", "url": f"worked/{last}", "spans": None}
    assert corpus.lookup(np.array([3, 1 << 32 | 1], np.uint64)) == {3: texts[3], 1 << 32 | 1: texts[SHARD_ROWS + 1]}
    empty = Corpus.from_texts(tmp_path / "e", [], "none")
    assert list(empty.texts()) == [] and len(empty) == 0 and empty.sources() == ()


@pytest.mark.parametrize(
    ("texts", "extra", "message"),
    [
        (["a", "b"], {"parents": [["x"]]}, "2 texts but 1 parents"),
        (["a", 3], {}, "text 1 is a int"),
        (["\ud800"], {}, "text 0 holds a lone surrogate"),
    ],
)
def test_what_is_not_text_is_refused(tmp_path: Path, texts: list[str], extra: dict[str, list[list[str]]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Corpus.from_texts(tmp_path, texts, "s", **extra)  # type: ignore[arg-type]


def test_a_view_moves_with_what_it_points_at(tmp_path: Path) -> None:
    corpus = Corpus.from_texts(tmp_path / "store" / "text" / "a" / "data", ["the cat and the dog have to be here"], "s")
    view = noted(tmp_path / "store" / "annotate" / "b", corpus, "gopher")
    assert view.refs() == (corpus.path.absolute(),)
    shutil.move(tmp_path / "store", tmp_path / "elsewhere")
    moved = Corpus.load(tmp_path / "elsewhere" / "annotate" / "b" / "data")
    assert [b["gopher.words"].to_pylist() for b in moved.batches(("gopher.words",))] == [[9]]


def test_a_sidecar_of_other_text_is_an_error(tmp_path: Path) -> None:
    corpus = Corpus.from_texts(tmp_path / "c", ["one two three"], "s")
    view = noted(tmp_path / "v", corpus, "gopher")
    Corpus.from_texts(tmp_path / "c", ["one two four!"], "s")  # the text changes under the view
    changed = Corpus.load(tmp_path / "c")
    stale = tmp_path / "v" / "data" / "columns" / f"gopher@{Gopher.version}" / "00000.parquet"
    other = Corpus.with_columns(changed, tmp_path / "w", [("gopher", 1, {"words": "int32"}, [stale])])
    with pytest.raises(UsageError, match="do not belong to its text"):
        list(other.batches(("gopher.words",)))
    assert view.fields()["gopher"]["words"] == "int32"


def test_unknown_columns_are_named_with_the_nearest(tmp_path: Path) -> None:
    view = noted(tmp_path / "v", Corpus.from_texts(tmp_path / "c", ["x"], "s"), "gopher")
    with pytest.raises(UsageError, match=r"no column 'gophr'; did you mean gopher"):
        list(view.batches(("gophr.words",)))
    with pytest.raises(UsageError, match="gopher has no field 'word'; it has words"):
        list(view.batches(("gopher.word",)))
    with pytest.raises(UsageError, match=r"no corpus\.json"):
        _ = Corpus.load(tmp_path / "nowhere").rows


def test_user_annotators_are_checked(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import pyarrow as pa\nfrom upslope.data.protocol import Annotate\n"
        "class Length(Annotate):\n    gives = {'n': 'float32'}\n    bad: str = ''\n"
        "    def __call__(self, batch):\n"
        "        n = [float(len(t)) for t in batch['text'].to_pylist()]\n"
        "        if self.bad == 'nan': n[0] = float('nan')\n"
        "        if self.bad == 'rows': n = n[1:]\n"
        "        return pa.RecordBatch.from_pydict({'m' if self.bad == 'name' else 'n': n})\n"
    )
    kind = f"{tmp_path / 'mine.py'}:Length"
    corpus = Corpus.from_texts(tmp_path / "c", ["ab", "c"], "s")
    view = noted(tmp_path / "v", corpus, {"kind": kind})
    assert [b["length.n"].to_pylist() for b in view.batches(("length.n",))] == [[2.0, 1.0]]
    wrong = {"nan": r"field 'n' is nan for row 0 \(s/0\)", "rows": "gave 1 rows for 2", "name": r"gave the columns \['m'\]"}
    for bad, message in wrong.items():
        with pytest.raises(UsageError, match=message):
            noted(tmp_path / bad, corpus, {"kind": kind, "bad": bad})
    two = Annotate(corpus=Input(stage="docs"), steps=(Gopher(), Gopher()))
    assert [p.path for p in two.check({})] == ["steps.1.name"]
