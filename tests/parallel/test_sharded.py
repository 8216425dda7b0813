"""Recomputation, saved states across meshes, QK-Clip on shards, and what shards hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.parallel.curves import batch_of, gathered, model_of, optim_of, trainer_on
from tests.parallel.support import distance, on_ranks
from upslope.config import FrozenDict
from upslope.model.aux import Aux
from upslope.model.config import Attention, Gated, Layer, ModelConfig, Normal, Reuse, Rope
from upslope.model.heads import ScalarHead
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.optim import muon
from upslope.optim.build import build
from upslope.optim.config import AdamW, Muon
from upslope.optim.qk_clip import qk_clip
from upslope.parallel.checkpointing import recompute
from upslope.parallel.config import Mesh, Recompute
from upslope.parallel.gather import like
from upslope.parallel.sharded import held_rows
from upslope.train.hooks import MovingAverage
from upslope.train.losses import BradleyTerry, Imitate
from upslope.train.parts import commit, manifests, write_parts
from upslope.train.trainer import Trainer

KEEPS = (Recompute(), Recompute(every=2), Recompute(keep="attention"), Recompute(keep="products"))


def shared_keys() -> Transformer:
    """A block whose attention reads the keys and values of the block below."""
    rope = Rope(base=50.0)
    mixer = Attention(heads=2, kv_heads=1, head_dim=8, position=rope)
    layers = {"a": Layer(mixer=mixer, ffn=Gated(hidden=24)), "b": Layer(mixer=mixer.replace(kv=Reuse()), ffn=Gated(hidden=24))}
    blocks: FrozenDict[str, Layer] = FrozenDict(layers)
    config = ModelConfig(d_model=16, blocks=blocks, pattern=(("a", 1), ("b", 1)), vocab=24, init=Normal(std=0.3))
    return initialise(Transformer(config), 0).double()


class Pass(NamedTuple):
    """Gradients by name, choices by router, and bytes kept for the backward pass."""

    grads: dict[str, Tensor]
    counts: dict[int, Tensor]
    kept: int


def run(model: Transformer) -> Pass:
    """One pass over a loss that reads hidden states and side outputs."""
    b, aux, kept = batch_of(0), Aux(frozenset({"router"})), [0]

    def pack(t: Tensor) -> Tensor:
        kept[0] += t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        hidden = model(b.ids, b.seg, b.pos, aux=aux)
        loss = hidden.sin().sum()
        for stats in aux.router.values():
            loss = loss + (stats.probs * torch.arange(stats.probs.shape[1])).square().sum() + stats.square.sum()
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return Pass(grads, {layer: s.counts for layer, s in aux.router.items()}, kept[0])


@pytest.mark.parametrize("make", [lambda: model_of("dense"), lambda: model_of("moe"), shared_keys], ids=["dense", "moe", "shared keys"])
@pytest.mark.parametrize("config", KEEPS, ids=str)
def test_recompute(make: Any, config: Recompute) -> None:
    """The same gradients to the bit, side outputs once, and less kept: the more is recomputed, the less."""
    plain, model = run(make()), make()
    recompute(model, config)
    found = run(model)
    assert set(found.grads) == set(plain.grads)
    for n, g in plain.grads.items():
        assert torch.equal(found.grads[n], g), n
    assert {layer: c.tolist() for layer, c in found.counts.items()} == {layer: c.tolist() for layer, c in plain.counts.items()}
    limit = 0.75 if config.every > 1 else 0.5
    assert found.kept < limit * plain.kept, (found.kept, plain.kept)


class Ops(TorchDispatchMode):
    """Counts matrix products and attention kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.attention = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += str(func).startswith("aten.mm.")
        self.attention += "_scaled_dot_product" in str(func) and "backward" not in str(func)
        return func(*args, **(kwargs or {}))


def work(config: Recompute | None) -> tuple[int, int]:
    """Matrix products and attention kernels of one forward and backward pass."""
    model = model_of("dense")
    if config is not None:
        recompute(model, config)
    with Ops() as ops:
        run(model)
    return ops.products, ops.attention


def test_recompute_work() -> None:
    """Each setting computes again what it says: all blocks, every other block, all but attention, all but products."""
    plain = work(None)
    more = [tuple(a - b for a, b in zip(work(c), plain)) for c in KEEPS]
    (products, attention), half, no_attention, no_products = more
    assert products > 0 < attention
    assert half == (products / 2, attention / 2)
    assert no_attention == (products, 0)
    assert no_products == (0, attention)


def test_held_rows() -> None:
    """Shards are the chunks that torch cuts."""
    for rows in (1, 3, 4, 7, 8, 9):
        for parts in (1, 2, 4):
            cut = [len(c) for c in torch.zeros(rows).chunk(parts)]
            assert held_rows(rows, parts) == cut + [0] * (parts - len(cut))


class Went(NamedTuple):
    """What a rank saw: the state that was read or saved, and losses after it."""

    state: dict[str, Tensor]
    losses: list[float]


def steps(trainer: Trainer, first: int, last: int) -> list[float]:
    """Losses of some steps."""
    return [trainer.step(batch_of(k), Imitate(), 3e-3).loss for k in range(first, last)]


def averaged(dtype: torch.dtype, mesh: Mesh | None) -> Trainer:
    """A trainer that also keeps a moving average."""
    model, optim = model_of("moe").to(dtype), optim_of("heads")
    alone = Trainer(model, optim, clip=0.5, micro_tokens=14, chunk=8) if mesh is None else trainer_on(model, optim, mesh, 14)
    hook = MovingAverage(0.9)
    hook.begin(alone)
    alone.hooks = (hook,)
    return alone


def saves(folder: Path, mesh: Mesh, dtype: torch.dtype) -> Went:
    """Trains, saves, goes on."""
    trainer = averaged(dtype, mesh)
    steps(trainer, 0, 2)
    state = trainer.state()
    rows: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(rows, write_parts(folder, 2, trainer.ranks.pieces(state), dist.get_rank(), 3000))
    if dist.get_rank() == 0:
        commit(folder, 2, [row for one in rows for row in one])
    assert trainer.ranks.copies(state) == {}
    whole = gathered(trainer, state)
    dist.barrier()
    return Went(whole, steps(trainer, 2, 3))


def goes_on(folder: Path, mesh: Mesh | None, dtype: torch.dtype) -> Went:
    """Reads what other ranks saved, and goes on."""
    trainer = averaged(dtype, mesh)
    steps(trainer, 0, 1)  # what was there before must not matter
    trainer.load(trainer.ranks.read(manifests(folder)[-1], trainer.state()).tensors)
    state = trainer.state()
    whole = {n: t.clone() for n, t in state.items()} if mesh is None else gathered(trainer, state)
    return Went(whole, steps(trainer, 2, 3))


def saved_and_read(folder: Path, mesh: Mesh, others: tuple[Mesh, ...], dtype: torch.dtype) -> list[Went]:
    """On one mesh, then on others of as many ranks."""
    return [saves(folder, mesh, dtype), *(goes_on(folder, other, dtype) for other in others)]


def read_here(folder: Path, meshes: tuple[Mesh, ...], dtype: torch.dtype) -> list[Went]:
    """On some meshes."""
    return [goes_on(folder, mesh, dtype) for mesh in meshes]


def same(found: Went, truth: Went, dtype: torch.dtype) -> None:
    """The state to the bit, and the losses after it."""
    assert set(found.state) == set(truth.state)
    for n, t in truth.state.items():
        assert found.state[n].dtype == t.dtype
        assert torch.equal(found.state[n], t), n
    assert any(t.dtype == dtype and t.ndim > 1 for t in truth.state.values())
    close = 1e-9 if dtype == torch.float64 else 1e-3
    assert all(abs(a - b) < close for a, b in zip(found.losses, truth.losses, strict=True))


def test_saved_elsewhere(tmp_path: Path) -> None:
    """What one mesh saved, others and one process read to the bit, and go on with the same steps in the same order."""
    others = (Mesh(fsdp=2, ep=2),)
    first, *rest = on_ranks(2, saved_and_read, tmp_path / "ranks", tmp_path, Mesh(tp=2), others, torch.float64)[0]
    for found in (*rest, goes_on(tmp_path, None, torch.float64)):
        same(found, first, torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_saved_by_four(dtype: torch.dtype, tmp_path: Path) -> None:
    """What four ranks saved, four on another mesh, two and one read to the bit."""
    here = (Mesh(dp=2, fsdp=2, ep=2), Mesh(fsdp=2, cp=2))
    first, *rest = on_ranks(4, saved_and_read, tmp_path / "4", tmp_path, Mesh(fsdp=2, tp=2), here, dtype)[0]
    there = on_ranks(2, read_here, tmp_path / "2", tmp_path, (Mesh(cp=2), Mesh(fsdp=2, ep=2), Mesh(tp=2)), dtype)[0]
    for found in (*rest, *there, goes_on(tmp_path, None, dtype)):
        same(found, first, dtype)


class Calls(TorchDispatchMode):
    """Counts collectives by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith("c10d."):
            self.seen[name.split(".")[1]] = self.seen.get(name.split(".")[1], 0) + 1
        return func(*args, **(kwargs or {}))


def collectives(meshes: tuple[Mesh, ...]) -> list[dict[str, int]]:
    """Of a step in three parts."""
    found = []
    for mesh in meshes:
        trainer = trainer_on(model_of("dense"), optim_of("adamw"), mesh, 14)
        steps(trainer, 0, 1)
        assert len(trainer.ranks.parts(batch_of(1), 14)) == 3
        with Calls() as calls:
            steps(trainer, 1, 2)
        found.append(calls.seen)
    return found


def test_zero(tmp_path: Path) -> None:
    """Two blocks and the rest in three parts: zero 1 sums gradients once, 2 in every part, 3 also gathers blocks again when going back."""
    meshes = tuple(Mesh(fsdp=2, zero=z) for z in (1, 2, 3))  # type: ignore[arg-type]
    one, two, three = on_ranks(2, collectives, tmp_path / "ranks", meshes)[0]
    assert [c["_reduce_scatter_base_"] for c in (one, two, three)] == [3, 9, 9]
    assert [c["_allgather_base_"] for c in (one, two, three)] == [9, 9, 15]


def orthogonalised(mesh: Mesh | None) -> int:
    """Matrices that this process puts through Newton-Schulz in one step."""
    seen = [0]
    plain = muon.newton_schulz

    def counting(g: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen[0] += len(g)
        return plain(g, *args, **kwargs)

    model, optim = model_of("dense"), optim_of("muon")
    trainer = Trainer(model, optim) if mesh is None else trainer_on(model, optim, mesh, 0)
    muon.newton_schulz = counting
    try:
        steps(trainer, 0, 1)
    finally:
        muon.newton_schulz = plain
    return seen[0]


def test_muon_spread(tmp_path: Path) -> None:
    """Each matrix is orthogonalised by one rank of the shards, about as many by each."""
    counts, every = on_ranks(2, orthogonalised, tmp_path / "ranks", Mesh(fsdp=2)), orthogonalised(None)
    assert sum(counts) == every
    assert max(counts) - min(counts) <= 1


NARROW: tuple[AdamW | Muon, ...] = (
    AdamW(lr=1e-2, state="bf16-sr"),
    AdamW(lr=1e-2, narrow_weights="stochastic"),
    AdamW(lr=1e-2, narrow_weights="master"),
    Muon(lr=1e-2, state="bf16-sr"),
)


def narrow(mesh: Mesh | None, config: AdamW | Muon) -> dict[str, Tensor]:
    """The state after two updates from given gradients, in 16 bits with random rounding where the config says so."""
    model = model_of("moe").to(torch.float32 if config.state == "bf16-sr" else torch.bfloat16)
    whole = {n: p.shape for n, p in model.named_parameters()}
    trainer = Trainer(model, config, seed=3) if mesh is None else trainer_on(model, config, mesh, 0)
    layout = trainer.ranks.shards
    trainer.optimizer = build(trainer.trained.items(), config, None, 3, layout)
    for step in range(2):
        g = torch.Generator().manual_seed(step)
        for n, p in trainer.trained.items():
            grad = torch.randn(whole[n], generator=g).to(p.dtype)
            p.grad = grad if layout is None else like(grad, layout.held[n], p)
        trainer.optimizer.step(1e-2)
    return {n: t.clone() for n, t in trainer.state().items()} if mesh is None else gathered(trainer, trainer.state())


def all_narrow(meshes: tuple[Mesh, ...]) -> list[list[dict[str, Tensor]]]:
    """By mesh, by config."""
    return [[narrow(mesh, config) for config in NARROW] for mesh in meshes]


def test_narrow_states(tmp_path: Path) -> None:
    """What is kept in 16 bits is rounded on shards as it is in one process, to the bit; of Muon's updates the last bits may differ."""
    meshes = (Mesh(tp=2), Mesh(fsdp=2, ep=2))
    for by_config in on_ranks(2, all_narrow, tmp_path / "ranks", meshes)[0]:
        for config, found in zip(NARROW, by_config, strict=True):
            truth = narrow(None, config)
            assert any(t.dtype == torch.bfloat16 for t in truth.values())
            for n, t in truth.items():
                exact = isinstance(config, AdamW) or n.endswith((".momentum", ".m", ".v"))
                assert torch.equal(found[n], t) if exact else distance(found[n], t) < 1e-3, n


def scored(mesh: Mesh | None) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and final scalar head of a reward model trained on pairs."""
    model, head = model_of("dense"), ScalarHead(16).double()
    if mesh is None:
        trainer = Trainer(model, optim_of("adamw"), clip=0.5, micro_tokens=30, chunk=8, scalar=head)
    else:
        trainer = trainer_on(model, optim_of("adamw"), mesh, 30, scalar=head)
    losses = []
    for step in range(3):
        b = replace(batch_of(step, 6), pairs=torch.arange(6).view(-1, 2), imitate=None)
        losses.append(trainer.step(b, BradleyTerry(), 3e-2).loss)
    return losses, {n: t.detach().clone() for n, t in head.state_dict().items()}


def all_scored(meshes: tuple[Mesh, ...]) -> list[tuple[list[float], dict[str, Tensor]]]:
    """On some meshes."""
    return [scored(mesh) for mesh in meshes]


def test_scalar_head(tmp_path: Path) -> None:
    """A head outside the model learns the same on every mesh."""
    losses, head = scored(None)
    for found, weights in on_ranks(2, all_scored, tmp_path / "ranks", (Mesh(fsdp=2), Mesh(cp=2)))[0]:
        assert all(abs(a - b) < 1e-9 for a, b in zip(found, losses, strict=True))
        assert all(distance(weights[n], t) < 1e-9 for n, t in head.items())


def clips(meshes: tuple[Mesh, ...], damage: bool) -> list[tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]]:
    """Clips heads on shards by given logits; tells of a copy that one rank damaged."""
    found = []
    for mesh in meshes:
        trainer = trainer_on(model_of("plain"), optim_of("muon"), mesh, 14)
        for shared in ("q", "min"):
            qk_clip(trainer.model, LOGITS, 100.0, 0.3, shared, trainer.optimizer.masters(), trainer.optimizer.shards)
        whole = gathered(trainer, trainer.state())
        if damage and dist.get_rank() == 1:
            rest: Any = trainer.optimizer.parts[1][0]
            rest.m.tensors["final_norm.weight"] += 1
        found.append((whole, trainer.ranks.copies(trainer.state())))
    return found


LOGITS = {0: torch.tensor([50.0, 200.0, 400.0, 100.0]).double(), 1: torch.tensor([300.0, 20.0, 30.0, 101.0]).double()}


def test_clip_and_copies(tmp_path: Path) -> None:
    """QK-Clip on shards scales what it scales on whole weights, to the bit; a damaged copy is found, and whose it is."""
    truth = Trainer(model_of("plain"), optim_of("muon"))
    for shared in ("q", "min"):
        qk_clip(truth.model, LOGITS, 100.0, 0.3, shared)
    meshes = (Mesh(fsdp=2), Mesh(tp=2), Mesh(dp=2))
    ranks = on_ranks(2, clips, tmp_path / "ranks", meshes, True)
    for mesh, (whole, wrong) in zip(meshes, ranks[0]):
        for n, t in truth.state().items():
            assert torch.equal(whole[n], t), n
        name = "optim.final_norm.weight.m"
        assert wrong == ({} if mesh.fsdp > 1 else {name: (1,)}), mesh
    assert distance(truth.state()["model.blocks.0.mixer.q.weight"], model_of("plain").state_dict()["blocks.0.mixer.q.weight"]) > 0.1
