from pathlib import Path

import pytest

from upslope.config import Input, UsageError
from upslope.data.artifacts import Corpus
from upslope.machine.context import Context
from upslope.machine.files import digest_path
from upslope.machine.stage import Artifact, Paused
from upslope.stages.mix import Mix
from upslope.stages.tokenize import Tokenize
from upslope.stages.tokenizer import TrainTokenizer, rates
from upslope.tokens.mixture import Mixture
from upslope.tokens.shards import TokenShards
from upslope.tokens.tokenizer import Tokenizer


@pytest.fixture
def inputs(tmp_path: Path, tokenizer: Tokenizer) -> dict[str, Artifact]:
    web = Corpus.from_texts(tmp_path / "web", [f"page {i} about the tokenizer and the stream {i * i}" for i in range(700)], "web")
    made = Corpus.from_texts(tmp_path / "made", [f"add: {i} + {i}\nanswer: {2 * i}" for i in range(100)], "made")
    return {"web": web, "made": made, "tok": tokenizer}


def test_tokenizer_stage_is_reproducible_and_shares_the_sample(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    stage = TrainTokenizer(corpora=(Input(stage="web"), Input(stage="made")), vocab_size=300, sample_bytes=8000)
    one, two = Context.scratch(tmp_path / "1", seed=0, **inputs), Context.scratch(tmp_path / "2", seed=9, **inputs)
    assert isinstance(stage.run(one), Tokenizer)
    stage.run(two)
    assert digest_path(one.out) == digest_path(two.out)
    assert 0 < one.facts["documents"] < 800
    assert "bytes of text per token" in one.headline
    assert rates([100, 1000], 400) == [1.0, 0.3]
    assert rates([10, 0], 400) == [1.0, 0.0]


def test_tokenize_splits_by_source_and_holds_documents_out(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    ctx = Context.scratch(tmp_path / "t", seed=0, **inputs)
    stage = Tokenize(tokenizer=Input(stage="tok"), corpora=(Input(stage="web"), Input(stage="made")), holdout=0.1)
    shards = stage.run(ctx)
    assert isinstance(shards, TokenShards)
    assert shards.sources() == ("made", "made@heldout", "web", "web@heldout")
    kept, held = set(shards.docs("web").tolist()), set(shards.docs("web@heldout").tolist())
    assert not kept & held
    assert kept | held == set(range(700))
    assert 30 < len(held) < 120
    assert ctx.facts["tokens"] == sum(shards.counts(s).tokens for s in shards.sources())
    whole = Tokenize(tokenizer=Input(stage="tok"), corpora=(Input(stage="web"),), holdout=0.0)
    nothing = whole.run(Context.scratch(tmp_path / "u", seed=0, **inputs))
    assert isinstance(nothing, TokenShards)
    assert nothing.sources() == ("web",)


def test_tokenize_stops_and_goes_on_to_the_same_bytes(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    stage = Tokenize(tokenizer=Input(stage="tok"), corpora=(Input(stage="web"), Input(stage="made")))
    whole = Context.scratch(tmp_path / "whole", seed=0, **inputs)
    stage.run(whole)
    stopped = 0
    for _ in range(10):
        ctx = Context.scratch(tmp_path / "cut", seed=0, **inputs)
        ctx.stopping = True  # every attempt is stopped after one slice
        try:
            stage.run(ctx)
            break
        except Paused:
            stopped += 1
    else:
        ctx = Context.scratch(tmp_path / "cut", seed=0, **inputs)
        stage.run(ctx)
    assert stopped >= 3
    assert digest_path(ctx.out) == digest_path(whole.out)


def test_two_corpora_with_one_source_name_are_refused(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    inputs["again"] = Corpus.from_texts(tmp_path / "again", ["x"], "web")
    stage = Tokenize(tokenizer=Input(stage="tok"), corpora=(Input(stage="web"), Input(stage="again")))
    with pytest.raises(UsageError, match="rename one"):
        stage.run(Context.scratch(tmp_path / "t", seed=0, **inputs))


def test_mix_compares_the_plan_with_what_is_there(tmp_path: Path, tokenizer: Tokenizer) -> None:
    shards = TokenShards.write(tmp_path / "s", tokenizer, {"a": ["x y z"] * 50, "b": ["1"] * 50, "b@heldout": ["2"], "c": ["3"]})
    tokens = {s: shards.counts(s).tokens for s in ("a", "b")}

    def run(folder: str, **fields: object) -> tuple[Artifact, Context]:
        ctx = Context.scratch(tmp_path / folder, s=shards)
        return Mix(shards=(Input(stage="s"),), **fields).run(ctx), ctx  # type: ignore[arg-type]

    mixture, ctx = run("1", weights={"a": 3, "b": [[0.0, 1.0], [1.0, 1.0]]}, tokens=400)
    assert isinstance(mixture, Mixture)
    assert mixture.shares(0.5) == {"a": 0.75, "b": 0.25}
    assert ctx.facts["asked"] == {"a": pytest.approx(300), "b": pytest.approx(100)}
    assert ctx.facts["epochs"]["a"] == pytest.approx(300 / tokens["a"])
    assert ctx.facts["unused"] == ["c"]
    with pytest.raises(UsageError, match=r"a: .* epochs, at most 4"):
        run("2", weights={"a": 1.0}, tokens=10_000)
    _, loud = run("3", weights={"a": 1.0}, tokens=10_000, over="alarm")
    assert loud.facts["beyond"] == ["a"]
    run("4", weights={"a": 1.0}, tokens=10_000, caps={"a": 1000.0})
    with pytest.raises(UsageError, match="no source"):
        run("5", weights={"b@heldout": 1.0}, tokens=10)


def test_a_ramp_changes_the_shares_over_progress(tmp_path: Path) -> None:
    mixture = Mixture.write(tmp_path, {"a": ((0.0, 1.0), (1.0, 0.0)), "b": 1.0}, 1000)
    assert mixture.shares(0.0) == {"a": 0.5, "b": 0.5}
    assert mixture.shares(1.0) == {"a": 0.0, "b": 1.0}
    assert mixture.asked()["a"] == pytest.approx(250)
    grid = mixture.cumulative(range(2001), 1000)
    steps = (grid[1:] - grid[:-1])[:, 0]
    assert (steps >= -1e-12).all()
    assert steps[1500] == pytest.approx(0.0)  # beyond the plan the last shares go on


def test_what_the_web_repeats_is_written_more_often(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from upslope.stages.dedup import Dedup

    base = "the quick brown fox jumps over the lazy dog beside the river bank while nine wise owls watch"
    texts = [base] * 9 + [f"another text with number {i} in it, about {i * 7} things that nobody else has written" for i in range(40)]
    corpus = Corpus.from_texts(tmp_path / "c", texts, "web")
    linked = Dedup(corpus=Input(stage="c")).run(Context.scratch(tmp_path / "d", c=corpus))

    def written(**fields: float) -> dict[int, int]:
        stage = Tokenize(tokenizer=Input(stage="tok"), corpora=(Input(stage="c"),), holdout=0.0, **fields)  # type: ignore[arg-type]
        shards = stage.run(Context.scratch(tmp_path / f"t{sorted(fields.items())}", tok=tokenizer, c=linked))
        assert isinstance(shards, TokenShards)
        docs = shards.docs("web").tolist()
        return {d: docs.count(d) for d in set(docs)}

    assert set(written().values()) == {1}
    once = written(repeat=0.5)
    assert {once[d] for d in range(9)} == {3} and {once[d] for d in range(9, 49)} == {1}
    assert written(repeat=1.0)[0] == 4 and written(repeat=1.0, most=7.0)[0] == 7
    part = written(repeat=0.25)  # 9^0.25 = 1.73: every copy of a text draws the same
    assert {part[d] for d in range(9)} in ({1}, {2})
