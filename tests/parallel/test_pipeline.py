"""A model in pipeline stages takes the steps of a whole one: losses, gradients, statistics, side losses, whatever the schedule."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.parallel.support import on_ranks
from tests.train.support import VOCAB, batch, grads, only, scalar
from tests.train.test_auxiliary import GQA, RATE, SPARSE, TERMS, Surveyed, config_of, experts
from upslope.config import UsageError
from upslope.model.aux import Aux
from upslope.model.config import MTP, Attention, BiasBalance, Gated, HyperConnections, Layer, ModelConfig, Normal, Reuse, Tied, dense
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.optim.config import AdamW
from upslope.optim.shards import local
from upslope.parallel.config import Mesh, Recompute
from upslope.parallel.groups import Axis, Groups
from upslope.parallel.pipeline import Pipe
from upslope.parallel.slices import level, piece_of
from upslope.parallel.staged import assemble_stages
from upslope.parallel.stages import blocks_of, boundaries, rank_of
from upslope.train.batch import Batch
from upslope.train.losses import Imitate
from upslope.train.parts import commit, write_parts
from upslope.train.piped import PipedTrainer, Stages
from upslope.train.trainer import Trainer

STEPS, MICRO = 20, 11
PLAIN: ModelConfig = dense(16, 4, 2, 1, 8, 24, context=64, vocab=VOCAB, init=Normal(std=0.3))
DEEP = dense(16, 8, 2, 1, 8, 24, context=64, vocab=VOCAB, init=Normal(std=0.3))
TIED = PLAIN.replace(head=Tied())
LAYERS = (
    Layer(mixer=GQA, ffn=experts(*TERMS, BiasBalance(rate=RATE), z_loss=0.05, shared=Gated(hidden=6))),
    Layer(mixer=GQA, ffn=Gated(hidden=8)),
    Layer(mixer=GQA, ffn=experts(TERMS[2])),
    Layer(mixer=GQA, ffn=Gated(hidden=8)),
)
EXPERTS = config_of(*LAYERS, mtp=MTP(depth=2, block="b0", weight=0.6, shared=True))
INDEXED = config_of(*(Layer(mixer=SPARSE, ffn=Gated(hidden=8)),) * 4)
STREAMS = config_of(*(Layer(mixer=GQA, ffn=Gated(hidden=8), residual=HyperConnections(streams=2, iterations=3)),) * 4)


def whole(config: ModelConfig) -> Transformer:
    return initialise(Transformer(config), 0).double()


def data(step: int) -> Batch:
    return only(batch((5, 9, 3, 7, 1, 6), seed=step % 3, dtype=torch.float64), "imitate")


class Run:
    """What a number of steps gave: losses, norms, statistics, the first step's gradients, weights at the end."""

    def __init__(self, t: Trainer, steps: int, begin: int = 0) -> None:
        update, seen = t.optimizer.step, dict[str, Tensor]()

        def first(lr: float) -> None:
            seen.update({} if seen else grads(t))
            update(lr)

        t.optimizer.step = first  # type: ignore[method-assign]
        reports = [t.step(data(k), Imitate(z_loss=0.01), 3e-3) for k in range(begin, begin + steps)]
        self.numbers = [{"loss": r.loss, "norm": r.grad_norm, **r.sums} for r in reports]
        self.grads = seen
        self.state = {n: x.detach().clone() for n, x in t.model.state_dict().items()}


def reference(config: ModelConfig, steps: int) -> Run:
    return Run(Trainer(whole(config), AdamW(), micro_tokens=MICRO), steps)


def differs(run: Run, other: Run) -> str:
    """How a rank's run differs from the whole model's; "" where it does not."""
    for k, (a, b) in enumerate(zip(run.numbers, other.numbers, strict=True)):
        if a.keys() != b.keys():
            return f"step {k}: {a.keys() ^ b.keys()}"
        if wrong := {n: (a[n], b[n]) for n in a if abs(a[n] - b[n]) > 1e-9 * max(1.0, abs(b[n]))}:
            return f"step {k}: {wrong}"
    for what, mine, whole, limit in (("gradient", run.grads, other.grads, 1e-10), ("weight", run.state, other.state, 1e-9)):
        for name, x in mine.items():
            if float((x - whole[name]).norm()) > limit * max(1.0, float(whole[name].norm())):
                return f"{what} of {name}: {float((x - whole[name]).norm()):g}"
    return ""


def split(config: ModelConfig, groups: Groups, **options: Any) -> PipedTrainer:
    pipe = Pipe(whole(config), groups["pp"].group, **options)
    recomputed = Recompute() if groups.mesh.tp > 1 else None
    return PipedTrainer(pipe, Stages(pipe, assemble_stages(pipe, groups, recomputed)), AdamW(), micro_tokens=MICRO)


def pair() -> Groups:
    """A mesh of its own for ranks 0 and 1, and another for 2 and 3."""
    rank = dist.get_rank()
    group = [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2]
    ranks = (rank // 2 * 2, rank // 2 * 2 + 1)
    axes = Groups.of(Mesh(pp=4)).axes
    alone = {name: Axis(name, 1, 0, (rank,), None) for name in axes}
    return Groups(Mesh(pp=2), rank, "cpu", alone | {name: Axis(name, 2, rank % 2, ranks, group) for name in ("pp", "world")})


class Case(NamedTuple):
    """steps: in the quick test; all take STEPS in the slow one."""

    config: ModelConfig
    pp: int
    steps: int
    options: dict[str, Any]


CASES = {
    "1f1b 4": Case(PLAIN, 4, 5, {}),
    "1f1b 2": Case(PLAIN, 2, STEPS, {}),
    "interleaved 2": Case(PLAIN, 2, STEPS, {"virtual": 2, "multiple": 8}),
    "gpipe 2": Case(PLAIN, 2, 3, {"schedule": "gpipe"}),
    "zbv 2": Case(PLAIN, 2, 3, {"virtual": 2, "schedule": "zbv"}),
    "tied 4": Case(TIED, 4, 3, {}),
    "tied interleaved 2": Case(TIED, 2, 3, {"virtual": 2}),
    "tied zbv 2": Case(TIED, 2, 3, {"virtual": 2, "schedule": "zbv"}),
    "experts 4": Case(EXPERTS, 4, 2, {}),
    "experts 2": Case(EXPERTS, 2, 2, {}),
    "experts interleaved 2": Case(EXPERTS, 2, 2, {"virtual": 2}),
    "streams gpipe 2": Case(STREAMS, 2, 2, {"schedule": "gpipe"}),
    "deep interleaved 4": Case(DEEP, 4, 0, {"virtual": 2}),
    "deep zbv 4": Case(DEEP, 4, 0, {"virtual": 2, "schedule": "zbv"}),
}


def _runs(names: list[list[str]], steps: dict[str, int], pickled: bytes) -> dict[str, str]:
    """Cases in lists of those that run side by side, on two ranks each."""
    wanted: dict[str, Run] = pickle.loads(pickled)
    rank, found = dist.get_rank(), {}
    all_of_them, two = Groups.of(Mesh(pp=4)), pair()
    for row in names:
        name = row[rank // 2 % len(row)]
        config, pp, _, options = CASES[name]
        t = split(config, all_of_them if pp == 4 else two, **options)
        found[name] = differs(Run(t, steps[name]), wanted[name])
    return found


def compared(names: list[list[str]], steps: dict[str, int], folder: Path) -> None:
    runs = {(CASES[n].config, steps[n]) for row in names for n in row}
    whole = {key: reference(*key) for key in runs}
    wanted = {n: whole[CASES[n].config, steps[n]] for row in names for n in row}
    found: dict[str, str] = {}
    for told in on_ranks(4, _runs, folder, names, steps, pickle.dumps(wanted), seconds=500):
        found |= {n: why for n, why in told.items() if why or n not in found}
    assert found == dict.fromkeys(wanted, "")


ROWS = [["1f1b 4"], ["1f1b 2", "interleaved 2"], ["gpipe 2", "zbv 2"], ["tied 4"], ["tied interleaved 2", "tied zbv 2"], ["experts 4"]]
ROWS += [["experts 2", "experts interleaved 2"], ["streams gpipe 2"]]


def test_every_schedule_takes_the_steps_of_the_whole_model(tmp_path: Path) -> None:
    compared(ROWS, {n: c.steps for n, c in CASES.items()}, tmp_path)


@pytest.mark.slow
def test_every_schedule_takes_many_steps(tmp_path: Path) -> None:
    compared([*ROWS, ["deep interleaved 4"], ["deep zbv 4"]], dict.fromkeys(CASES, STEPS), tmp_path)


WIDE = dense(16, 4, 2, 2, 8, 24, context=64, vocab=VOCAB + 1, init=Normal(std=0.3)).replace(head=Tied())
MESHES = {
    "replicas": (EXPERTS, Mesh(dp=2, pp=2)),
    "shards": (WIDE, Mesh(fsdp=2, pp=2, virtual=2)),
    "tensors": (WIDE, Mesh(tp=2, pp=2)),
    "experts": (EXPERTS, Mesh(fsdp=2, ep=2, pp=2)),
}


def _meshes(folder: str, pickled: bytes) -> dict[str, str]:
    """Two steps on each mesh, the second after the state was saved and read by a new trainer."""
    wanted: dict[str, Run] = pickle.loads(pickled)
    found = {}
    for name, (config, mesh) in MESHES.items():
        groups = Groups.of(mesh)
        t = split(config, groups, virtual=mesh.virtual)
        run = Run(t, 1)
        rows: list[Any] = [None] * 4
        dist.all_gather_object(rows, write_parts(Path(folder), 1, t.ranks.pieces(t.state()), dist.get_rank()))
        path = [str(commit(Path(folder), 1, [r for row in rows for r in row])) if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(path, 0)
        again = split(config, groups, virtual=mesh.virtual)
        again.load(again.ranks.read(Path(str(path[0])), again.state()).tensors)
        for key in again.ranks.copies(again.state()):
            found[name] = f"{key} differs between ranks"
        run.numbers += Run(again, 1, 1).numbers
        assert isinstance(again.ranks, Stages)
        layout = again.ranks.layout
        whole = wanted[name].state
        run.grads, run.state = {}, {n: local(x) for n, x in again.model.state_dict().items()}
        wanted[name].state = {n: layout.held[n].of(whole[n]) if n in layout.held else whole[n] for n in run.state}
        found.setdefault(name, differs(run, wanted[name]))
    return found


def test_stages_over_other_axes(tmp_path: Path) -> None:
    wanted = pickle.dumps({name: reference(config, 2) for name, (config, _) in MESHES.items()})
    (tmp_path / "saved").mkdir()
    for found in on_ranks(4, _meshes, tmp_path / "ranks", str(tmp_path / "saved"), wanted):
        assert found == dict.fromkeys(MESHES, "")


def _passes() -> dict[str, Any]:
    """Two stages beside the whole model: what differs, by what was tried."""
    groups, found = Groups.of(Mesh(pp=2)), dict[str, Any]()
    pipe = Pipe(whole(PLAIN), groups["pp"].group)
    ranks = Stages(pipe, assemble_stages(pipe, groups))
    t = PipedTrainer(pipe, ranks, AdamW(), micro_tokens=MICRO, scalar=scalar())
    one = Trainer(whole(PLAIN), AdamW(), micro_tokens=MICRO, scalar=scalar())
    wants = frozenset({"logprob", "entropy", "value", "score"})
    pairs = zip(t.forward(data(0), wants), one.forward(data(0), wants))
    found["forward"] = max(float((a - b).abs().max()) for a, b in pairs if a is not None and b is not None)

    found["count"] = ranks.count(t.trained) - one.ranks.count(one.trained)
    a, b = t.step(data(0), Surveyed(), 1e-3), one.step(data(0), Surveyed(), 1e-3)
    found["survey"] = abs(a.loss - b.loss) + max(abs(a.sums[n] - b.sums[n]) for n in b.sums)

    parts, seen = data(1).split(MICRO), Aux(frozenset({"max_logit"}))

    def loss(logits: Any) -> Any:
        return lambda hidden, i: logits(hidden).square().sum() * (i + 1)

    def side(aux: Aux, i: int) -> None:
        for layer, largest in aux.max_logit.items():
            seen.saw_logit(layer, largest.detach())

    for p in (*pipe.local.parameters(), *one.model.parameters()):
        p.grad = None
    values = pipe.accumulate(parts, loss(pipe.logits), frozenset({"max_logit"}), side, scale=4.0)
    largest, wanted = Aux(frozenset({"max_logit"})), []
    for i, p in enumerate(parts):
        wanted.append(loss(one.model.logits)(one.model(p.ids, p.seg, p.pos, aux=largest), i))
        wanted[-1].backward()
    found["values"] = max(abs(v - float(w.detach())) / v for v, w in zip(values, wanted))
    whole_grads = grads(one)
    found["scaled"] = max(float((g / 4 - whole_grads[n]).norm() / whole_grads[n].norm()) for n, g in grads(t).items() if n in whole_grads)
    found["layers"] = sorted(seen.max_logit) == [2 * groups["pp"].index, 2 * groups["pp"].index + 1]
    found["logits"] = max(float((x - largest.max_logit[i]).abs().max()) for i, x in seen.max_logit.items())

    for stage in pipe.stages:  # nothing below the last stage is trained
        stage.requires_grad_(stage.last)
    pipe.local.zero_grad()
    pipe.accumulate(parts, loss(pipe.logits))
    left = {n: p.grad for n, p in pipe.local.named_parameters() if p.grad is not None}
    found["frozen"] = max((float((g - whole_grads[n]).norm() / whole_grads[n].norm()) for n, g in left.items()), default=0.0)
    found["frozen count"] = len(left) == (0 if pipe.local.first else len(list(pipe.local.parameters())))

    low = Pipe(whole(PLAIN).float(), groups["pp"].group)
    cast = PipedTrainer(low, Stages(low, assemble_stages(low, groups)), AdamW(), numerics="bf16", micro_tokens=MICRO)
    fresh = Trainer(whole(PLAIN), AdamW(), micro_tokens=MICRO)
    exact, rounded = fresh.step(data(0), Imitate(), 0.0).loss, cast.step(data(0), Imitate(), 0.0).loss
    found["bf16"] = 1e-6 < abs(exact - rounded) < 0.1

    tied = split(TIED, groups)
    found["tied count"] = tied.ranks.count(tied.trained) - sum(p.numel() for p in whole(TIED).parameters())
    found["parts"] = len(tied.ranks.parts(data(0), 0))
    indexed = split(INDEXED, groups)
    even = Batch.of(list(data(0).ids[:30].view(5, 6)), imitate=(torch.arange(30) % 6 > 0).double())
    report = indexed.step(even, Imitate(), 0.0)
    truth = Trainer(whole(INDEXED), AdamW(), micro_tokens=MICRO).step(even, Imitate(), 0.0)
    found["index"] = max(abs(report.sums[n] - truth.sums[n]) for n in truth.sums) + abs(report.grad_norm - truth.grad_norm)
    found["uneven index"] = refusal(lambda: indexed.step(data(0), Imitate(), 0.0))
    found["zbv and virtual"] = refusal(lambda: Pipe(whole(PLAIN), groups["pp"].group, schedule="zbv"))
    found["zbv and experts"] = refusal(lambda: Pipe(whole(EXPERTS), groups["pp"].group, schedule="zbv", virtual=2))

    found["weights"] = refusal(t.weights)
    short = dist.new_group([0, 1], timeout=timedelta(seconds=1))
    if groups.rank == 0:
        try:
            Pipe(whole(PLAIN), short).accumulate(parts, loss(pipe.logits))
        except RuntimeError as error:
            found["missing rank"] = "imed out" in str(error)
    return found


def refusal(f: Callable[[], object]) -> str:
    try:
        f()
    except UsageError as error:
        return str(error)
    return "not refused"


def test_passes_of_two_stages(tmp_path: Path) -> None:
    for rank, found in enumerate(on_ranks(2, _passes, tmp_path)):
        for name in ("forward", "survey", "values", "scaled", "logits", "frozen", "index"):
            assert found[name] < 1e-10, name
        assert found["layers"]
        assert found["count"] == found["tied count"] == 0
        assert found["parts"] >= 2
        assert found["frozen count"]
        assert found["bf16"]
        assert "pp = 1" in found["weights"]
        assert "indexer" in found["uneven index"]
        assert "virtual = 2, not 1" in found["zbv and virtual"]
        assert "experts" in found["zbv and experts"]
        assert rank or found["missing rank"]


def test_where_stages_begin() -> None:
    """Blocks alone where they divide, else with embedding and head; ends stay where they belong."""
    assert [list(r) for r in blocks_of(PLAIN, 2)] == [[0, 1], [2, 3]]
    six = dense(16, 6, 2, 1, 8, 24, context=64, vocab=VOCAB)
    assert boundaries(six, 4) == [0, 2, 4, 6]
    assert [list(r) for r in blocks_of(six, 4)] == [[0], [1, 2], [3, 4], [5]]
    assert [list(r) for r in blocks_of(six, 8)] == [[], [0], [1], [2], [3], [4], [5], []]
    with pytest.raises(UsageError, match="6 layers do not divide into pp x virtual = 5"):
        blocks_of(six, 5)
    assert [rank_of(s, 2) for s in range(4)] == [0, 1, 0, 1]
    assert [rank_of(s, 3, "v") for s in range(6)] == [0, 1, 2, 2, 1, 0]


def test_layers_that_share_stay_together() -> None:
    own = Attention(heads=2, kv_heads=1, head_dim=8, position=GQA.position)
    first, second = (Layer(mixer=m, ffn=Gated(hidden=8)) for m in (own, own.replace(kv=Reuse())))
    assert len(blocks_of(config_of(first, second, first, second), 2)) == 2
    with pytest.raises(UsageError, match=r"blocks.2 reuses the keys and values of blocks.0, which is in stage 0, not in stage 1"):
        blocks_of(config_of(first, second, second, first), 2)


@pytest.mark.parametrize("seed", range(4))
def test_filler_changes_nothing(seed: int) -> None:
    """Parts come out equally long; the tokens in front are what they were, and so are their hidden states and the largest logits."""
    draw = random.Random(seed)
    sizes = tuple(draw.randint(1, 9) for _ in range(8))
    parts = only(batch(sizes, seed=seed, dtype=torch.float64), "imitate").split(draw.randint(1, 20))
    model, multiple = whole(PLAIN), draw.randint(1, 4)
    pieces = level(parts, len(parts) + 2, multiple)
    assert len({len(p.ids) for p in pieces}) == 1
    assert len(pieces[0].ids) % multiple == 0
    for part, piece in zip([*parts, *[parts[0]] * 2], pieces):
        plain, filled = Aux(frozenset({"max_logit"})), Aux(frozenset({"max_logit"}))
        hidden, wanted = model(*piece[:3], aux=filled), model(part.ids, part.seg, part.pos, aux=plain)
        for i, largest in plain.max_logit.items():
            assert torch.allclose(filled.max_logit[i], largest, rtol=1e-12) or not piece.tokens
        if piece.tokens:
            assert piece[3:] == piece_of(part)[3:] == (len(part), part.segments)
            assert torch.allclose(hidden[: piece.tokens], wanted, rtol=1e-12, atol=1e-12)
