"""Corpora gathered into one view keep what they kept, their columns and their histories; drop order decides across them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.data.make import extracted, ingested, record, warc_gz
from tests.data.test_rewrite import Length, run
from upslope.config import Input
from upslope.data.artifacts import Corpus
from upslope.data.lineage import origin
from upslope.data.protocol import Rule
from upslope.machine.context import Context
from upslope.stages.annotate import Annotate
from upslope.stages.curate import Curate
from upslope.stages.dedup import Dedup
from upslope.stages.gather import Gather

PAGE = "<html><body><p>{}</p></body></html>"
STORY = "The quick brown fox jumps over the lazy dog while nine wise owls watch from an old oak tree beside the river bank at dusk"


def test_drop_order_across_corpora_and_the_way_back_to_each_record(tmp_path: Path) -> None:
    bodies = [STORY, "short", "A tale of another kind, of seven ships and of the storm that took them"]
    pages, _ = ingested(
        tmp_path / "i",
        warc_gz(tmp_path / "a.warc.gz", [record(f"http://a.example/{i}", PAGE.format(b).encode()) for i, b in enumerate(bodies)]),
    )
    crawl, _ = extracted(tmp_path / "e", pages)
    crawl = run(Annotate(corpus=Input(stage="docs"), steps=(Length(),)), tmp_path / "n", crawl)
    crawl = run(Curate(corpus=Input(stage="docs"), rules=(Rule(name="long", keep="length.n > 20"),)), tmp_path / "k", crawl)
    wiki = Corpus.from_texts(
        tmp_path / "w", [STORY, "Something else entirely, about ships."], "wiki", urls=["w/0", "w/1"], provenance="import"
    )
    wiki = run(Annotate(corpus=Input(stage="docs"), steps=(Length(),)), tmp_path / "m", wiki)
    ctx = Context.scratch(tmp_path / "g", crawl=crawl, wiki=wiki)
    made = Gather(corpora=(Input(stage="crawl"), Input(stage="wiki"))).run(ctx)
    assert isinstance(made, Corpus) and ctx.facts["parts"] == {"crawl": 2, "wiki": 2} and ctx.facts["columns"] == ["length"]
    assert made.table(("url",))["url"].to_pylist() == ["http://a.example/0", "http://a.example/2", "w/0", "w/1"]
    copies = run(Dedup(corpus=Input(stage="docs")), tmp_path / "d", made)  # type: ignore[arg-type]
    for order, dead in (("case source when 'wiki' then 0 else 1 end, doc", "http://a.example/0"), ("doc", "w/0")):
        final = run(Curate(corpus=Input(stage="docs"), winner=order), tmp_path / order[:3], copies)
        assert dead not in final.table(("url",))["url"].to_pylist() and len(final) == 3
        assert [f.rule for f in final.why(dead)[0].failures] == ["duplicate"]
        assert [(f.rule, f.value) for f in final.why("http://a.example/1")[0].failures] == [("long", "n=5")]
    known = origin(final, int(final.docs()[2]))
    assert known["record"].startswith("a.warc.gz@") and known["url"] == "http://a.example/2" and known["kept"]
    assert "record" not in origin(final, 1 << 32) and origin(final, 1 << 32)["provenance"] == "import"
    np.testing.assert_array_equal(final.docs(), [0, 1, 2, 1 << 32, 1 << 32 | 1])
