"""A chain of stages on one schedule: its tokens, learning rates and lengths are those of closed forms, its state goes through."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.model.support import tokenizer
from upslope.config import Input, UsageError
from upslope.machine.context import Context
from upslope.machine.events import Events
from upslope.machine.events import read as read_events
from upslope.machine.rng import seed_of
from upslope.machine.stage import Artifact
from upslope.model.checkpoint import Checkpoint
from upslope.model.config import Normal, dense
from upslope.optim.config import AdamW
from upslope.optim.schedule import WSD, Constant, Cosine, Part, Piece, Segments
from upslope.recipes.midtrain import Stretch, chained
from upslope.stages.pretrain import Pretrain
from upslope.tokens.mixture import Mixture
from upslope.tokens.shards import TokenShards
from upslope.tokens.stream import permute
from upslope.train.extension import Base, ropes_of
from upslope.train.init import Scratch
from upslope.train.stage import Training

PEAK, ROWS, ROW = 2e-3, 8, 16


@pytest.mark.parametrize(
    "whole", [WSD(warmup=3, decay=0.5), Cosine(warmup=0.1), Segments(pieces=(Piece(length=7), Piece(length=4, end=0.1)))]
)
def test_parts_are_the_whole(whole: Any) -> None:
    sizes, total = (5, 8, 7), 20
    found = [Part(whole=whole, first=sum(sizes[:i]), total=total).at(k, n) for i, n in enumerate(sizes) for k in range(n)]
    assert found == [whole.at(k, total) for k in range(total)]
    with pytest.raises(UsageError, match="steps 15 to 21 of 20"):
        Part(whole=whole, first=15, total=total).at(0, 6)
    with pytest.raises(UsageError, match="outside"):
        Part(whole=whole, first=0, total=total).at(5, 5)


class World(NamedTuple):
    inputs: dict[str, Artifact]

    def run(self, folder: Path, stages: dict[str, Pretrain]) -> dict[str, tuple[Checkpoint, Context]]:
        done: dict[str, tuple[Checkpoint, Context]] = {}
        for name, stage in stages.items():
            ctx = Context.scratch(folder / name, 0, **self.inputs, **{n: c for n, (c, _) in done.items()})
            ctx.events = Events(folder / name / "events.jsonl")
            done[name] = (stage.run(ctx), ctx)
        return done


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    texts = {
        source: [f"{source} {i} is {i * k % 13} of {i % 7} in the row" for i in range(90)] for k, source in enumerate(("a", "b", "c"), 3)
    }
    mixes = {"one": {"a": 0.8, "b": 0.2}, "two": {"a": 0.3, "b": 0.7}, "three": {"b": 0.5, "c": 0.5}}
    shards = TokenShards.write(root / "shards", tokenizer(), texts)
    inputs: dict[str, Artifact] = {"tokenizer": tokenizer(), "shards": shards}
    inputs |= {name: Mixture.write(root / name, weights, tokens=100_000) for name, weights in mixes.items()}
    return World(inputs)


WHOLE = Segments(warmup=2, pieces=(Piece(length=8), Piece(length=4, end=0.1), Piece(length=4, start=0.1, end=0.1)))
CHAIN = (
    Stretch("first", 5, "one"),
    Stretch("second", 3, "two"),
    Stretch("decay", 4, "three"),
    Stretch("long", 2, "three", 2 * ROW, Base(base=500.0)),
    Stretch("longer", 2, "three", 4 * ROW),
)


def template(**changes: Any) -> Pretrain:
    fields: dict[str, Any] = {
        "init": Scratch(model=dense(16, 1, 2, 1, 8, 24, context=ROW, init=Normal(std=0.1))),
        "tokenizer": Input(stage="tokenizer"),
        "shards": (Input(stage="shards"),),
        "mixture": Input(stage="one"),
        "rows": ROWS,
        "row_length": ROW,
        "optim": AdamW(lr=PEAK),
        "numerics": "fp32",
        "log_every": 1,
    }
    return Pretrain(**(fields | changes))


def block(shards: TokenShards, source: str, length: int, seed: int, unit: int) -> np.ndarray:
    """The `unit`-th row that is taken of a source, from the files alone."""
    tokens = np.asarray(shards.tokens(source), np.int64)
    count = -(-len(tokens) // length)
    epoch, position = divmod(unit, count)
    at = permute(position, count, seed_of(seed, "blocks", source, epoch))
    return np.take(tokens, np.arange(at * length, (at + 1) * length), mode="wrap")


def test_tokens_and_learning_rates_of_all_stages_are_those_of_closed_forms(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[np.ndarray] = []
    fitted = Training.fitted

    def spied(self: Training, ctx: Context, trainer: Any, batches: Any, *rest: Any, **more: Any) -> Any:
        def batch(step: int) -> Any:
            b = batches(step)
            read.append(b.ids.numpy())
            return b

        return fitted(self, ctx, trainer, batch, *rest, **more)

    monkeypatch.setattr(Training, "fitted", spied)
    done = world.run(tmp_path, chained(template(), WHOLE, CHAIN))

    total = sum(s.steps for s in CHAIN)
    rates = [e["values"]["lr"] for s in CHAIN for e in read_events(tmp_path / s.name) if e["kind"] == "metric"]
    plateau, decay = [1 / 2, 1.0] + [1.0] * 6, [1 - 0.9 * j / 4 for j in range(4)]
    assert rates == pytest.approx([PEAK * m for m in [*plateau, *decay, 0.1, 0.1, 0.1, 0.1]], rel=1e-12)
    assert len(read) == total and all(ids.size == ROWS * ROW for ids in read)  # as many tokens a step, however long the rows

    shards, at = world.inputs["shards"], 0
    assert isinstance(shards, TokenShards)
    for s in CHAIN:
        mixture = world.inputs[s.mixture]
        assert isinstance(mixture, Mixture)
        length, seed = s.length or ROW, seed_of(0, "stream", s.name)
        rows = np.concatenate(read[at : at + s.steps]).reshape(-1, length)
        at += s.steps
        taken = dict.fromkeys(mixture.sources, 0)
        for k, row in enumerate(rows):
            source = next(x for x in mixture.sources if (row == block(shards, x, length, seed, taken[x])).all())
            taken[source] += 1
            for x, share in mixture.shares(0.5).items():
                assert abs(taken[x] - share * (k + 1)) <= 1, (s.name, k)
    assert [ropes_of(c.config().blocks["dense"].mixer)[0].base for c, _ in done.values()] == [10_000.0] * 3 + [500.0] * 2
    assert [c.config().context for c, _ in done.values()] == [ROW] * 3 + [2 * ROW, 4 * ROW]


def test_a_cut_run_is_the_whole_run_to_the_bit(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both read the same rows, one stage and two on parts of its schedule end with the same weights: the state goes through."""
    import upslope.train.build as build

    real = build.of_stream
    monkeypatch.setattr(build, "of_stream", lambda stream, first, rows: real(stream, 0, rows))

    def last(name: str, *stretches: Stretch) -> dict[str, torch.Tensor]:
        stages = {n: s.replace(order="") for n, s in chained(template(), WSD(warmup=2, decay=0.5), stretches).items()}
        return world.run(tmp_path / name, stages)[stretches[-1].name][0].model().tensors()

    whole = last("whole", Stretch("all", 10, "one"))
    cut = last("cut", Stretch("x", 4, "one"), Stretch("y", 6, "one"))
    other = last("other", Stretch("x", 4, "one"), Stretch("y", 5, "one"))
    assert all(torch.equal(cut[n], whole[n]) for n in whole)
    assert any(not torch.equal(other[n], whole[n]) for n in whole)


def test_the_order_decides_which_rows_come_first(tmp_path: Path, world: World) -> None:
    stages = {n: template(order=n, length="3st", schedule=Constant()) for n in ("", "other")}
    same = {f"run{i}": stages[""] for i in range(2)} | {"run2": stages["other"]}
    a, b, c = (world.run(tmp_path / n, {n: s})[n][0].model().tensors() for n, s in same.items())
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert any(not torch.equal(a[n], c[n]) for n in a)


def test_rows_that_do_not_divide_a_step_are_refused() -> None:
    with pytest.raises(UsageError, match="a step of 128 tokens is not whole rows of 48"):
        chained(template(), WHOLE, [*CHAIN[:1], Stretch("odd", 3, "one", 48)])


def test_the_recipe_is_such_a_chain_and_its_numbers_add_up() -> None:
    from upslope.machine.graph import resolve
    from upslope.recipes.load import load
    from upslope.stages.mix import Mix

    recipe = load("midtrain").recipe
    resolve(recipe)
    chain = [(n, s) for n, s in recipe.stages.items() if isinstance(s, Pretrain)]
    assert [n for n, _ in chain] == ["general", "math", "thinking", "anneal", "long_256", "long_512"]
    assert {s.rows * s.row_length for _, s in chain} == {2048}
    begin = 0
    read: dict[str, float] = {}
    for (name, s), before in zip(chain, [None, *chain], strict=False):
        assert isinstance(s.schedule, Part) and s.schedule.first == begin
        begin += int(s.length.amount)
        read[s.mixture.stage] = read.get(s.mixture.stage, 0) + s.length.amount * 2048
        assert s.init.kind == ("scratch" if before is None else "continue"), name
        assert before is None or s.init.checkpoint.stage == before[0]  # type: ignore[union-attr]
    assert begin == chain[0][1].schedule.total  # type: ignore[union-attr]
    for name, tokens in read.items():
        mix = recipe.stages[name]
        assert isinstance(mix, Mix) and mix.tokens == tokens


@pytest.mark.parametrize("name", ["long_512", "context", "ready"])
def test_every_field_of_its_stages_is_part_of_their_identity(name: str) -> None:
    from tests.recipes.test_identity_of_every_field import changes
    from upslope.machine.identity import identity
    from upslope.recipes.load import load

    stage = load("midtrain").recipe.stages[name]
    seen = {identity(stage, {})}
    for path, execution, changed in changes(stage):
        found = identity(changed, {})
        assert (found in seen) == execution, path
        seen.add(found)
    assert len(seen) > 15
