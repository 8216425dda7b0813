"""Lightning attention and Mamba-2 against recurrences written token by token: packing, chunk sizes, caches, gradients, initial values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import upslope.model.mamba as scan_module
from tests.model.support import loud, segments, tokens
from upslope.config import FrozenDict
from upslope.model.cache import Cache
from upslope.model.config import MTP, Attention, Gated, Layer, Lightning, Mamba2, ModelConfig, Nope, Nothing
from upslope.model.families import FAMILIES
from upslope.model.flow import Flow
from upslope.model.init import initialise
from upslope.model.lightning import decays
from upslope.model.packing import Packing
from upslope.model.transformer import Transformer
from upslope.optim.roles import decayed, role

LIGHTNING = Lightning(heads=3, head_dim=4, eps=1e-2)
MAMBA = Mamba2(heads=6, head_dim=4, state=5, groups=2, conv=3, eps=1e-2, dt_min=0.4)
MIXERS = {"lightning": LIGHTNING, "mamba2": MAMBA, "one_group": MAMBA.replace(groups=1, conv=2), "own_groups": MAMBA.replace(groups=6)}
LENGTHS = (5, 1, 13, 8, 2, 9)
D = 10
EXACT = 1e-10


def config(mixer: Any, depth: int = 3) -> ModelConfig:
    """A model of this mixer, a layer of attention between."""
    other = Attention(heads=2, kv_heads=1, head_dim=4, position=Nope(), qk_norm=None)
    blocks = {"rec": Layer(mixer=mixer, ffn=Nothing()), "att": Layer(mixer=other, ffn=Gated(hidden=12))}
    pattern = ("rec", "att", *["rec"] * (depth - 2))
    return ModelConfig(d_model=D, blocks=FrozenDict(blocks), pattern=pattern, vocab=64, context=64)  # type: ignore[arg-type]


def model_of(name: str, dtype: torch.dtype = torch.float64) -> Transformer:
    """Loud weights; the taps and vectors of Mamba-2 of both signs."""
    model = loud(config(MIXERS[name]), dtype=dtype)
    with torch.no_grad():
        for path, p in model.named_parameters():
            if path.endswith(("A_log", "dt_bias", "conv.weight", "conv.bias", ".D")):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(path)), dtype=torch.float64))
    return model.requires_grad_(False)


def flow_of(lengths: tuple[int, ...], dtype: torch.dtype, cache: Cache | None = None, slots: tuple[int, ...] = ()) -> Flow:
    packing = Packing(segments(*lengths))
    step = cache.begin(torch.tensor(slots), packing.lengths, dtype) if cache is not None else None
    return Flow(torch.zeros(sum(lengths), dtype=torch.long), packing.offsets(), packing, step, "auto", None, dtype)


def inputs(count: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rms(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean() + eps).sqrt()


def naive_lightning(m: Any, x: Tensor, layer: int, depth: int) -> tuple[Tensor, Tensor]:
    """One segment x (T, d), a token and a head at a time → outputs (T, d), final states (heads, D_v, D_k)."""
    c = m.config
    state = [x.new_zeros(c.head_dim, c.head_dim)] * c.heads
    out = []
    for row in x:
        q, k, v = (F.silu(w.weight @ row).view(c.heads, c.head_dim) for w in (m.q, m.k, m.v))
        heads = []
        for h in range(c.heads):
            rate = 2 ** (-8 * (h + 1) / c.heads) * (1 - layer / (depth - 1 + 1e-5) + 1e-5)
            state[h] = math.exp(-rate) * state[h] + torch.outer(v[h], k[h])
            heads.append(state[h] @ q[h])
        out.append(m.o.weight @ (torch.sigmoid(m.gate.weight @ row) * (rms(torch.cat(heads), c.eps) * m.norm.weight)))
    return torch.stack(out), torch.stack(state)


def naive_mamba(m: Any, x: Tensor, layer: int, depth: int) -> tuple[Tensor, Tensor]:
    """The same for Mamba-2 → outputs (T, d), final states (heads, head_dim, state)."""
    c = m.config
    inner, shared = c.heads * c.head_dim, c.groups * c.state
    projected = x @ m.in_proj.weight.T
    z, xbc, dt = projected[:, :inner], projected[:, inner : 2 * inner + 2 * shared], projected[:, 2 * inner + 2 * shared :]
    taps = m.conv.weight.view(-1, c.conv)
    state = [x.new_zeros(c.head_dim, c.state)] * c.heads
    out = []
    for t in range(len(x)):
        mixed = m.conv.bias.clone()
        for j in range(c.conv):
            if t - j >= 0:
                mixed = mixed + taps[:, c.conv - 1 - j] * xbc[t - j]
        mixed = mixed * torch.sigmoid(mixed)
        u, b, r = mixed[:inner].view(c.heads, -1), mixed[inner : inner + shared], mixed[inner + shared :]
        b, r = b.view(c.groups, -1), r.view(c.groups, -1)
        heads = []
        for h in range(c.heads):
            delta = torch.log1p(torch.exp(dt[t, h] + m.dt_bias[h]))
            delta = torch.maximum(delta, delta.new_tensor(c.dt_min))
            g = h // (c.heads // c.groups)
            state[h] = torch.exp(-torch.exp(m.A_log[h]) * delta) * state[h] + delta * torch.outer(u[h], b[g])
            heads.append(state[h] @ r[g] + m.D[h] * u[h])
        gated = torch.cat(heads) * (z[t] * torch.sigmoid(z[t]))
        normed = torch.cat([rms(part, c.eps) for part in gated.view(c.groups, -1)])
        out.append(m.o.weight @ (normed * m.norm.weight))
    return torch.stack(out), torch.stack(state)


def mixer_at(model: Transformer, layer: int) -> Any:
    block: Any = model.blocks[layer]
    return block.mixer


def naive(model: Transformer, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    m = mixer_at(model, layer)
    return (naive_lightning if isinstance(m.config, Lightning) else naive_mamba)(m, x, layer, model.config.depth)


@pytest.mark.parametrize("chunk", [1, 3, 4, 13, 64, 1024])
@pytest.mark.parametrize("name", MIXERS)
def test_equals_the_recurrence_in_every_segment_at_any_chunk_size(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "SCAN_CHUNK", chunk)
    model, x = model_of(name), inputs(sum(LENGTHS))
    for layer in (0, 2):
        got = mixer_at(model, layer)(x, flow_of(LENGTHS, x.dtype))
        wanted = torch.cat([naive(model, part, layer)[0] for part in x.split(LENGTHS)])
        assert wanted.std() > 0.1
        assert (got - wanted).abs().max() <= EXACT


def test_decays_by_hand() -> None:
    """2 heads, 3 layers: 2^-4 and 2^-8, times 1 + 1e-5, 1 - 1/2.00001 + 1e-5 and 1 - 2/2.00001 + 1e-5."""
    for layer, factor in enumerate((1.00001, 0.5000124999875, 1.4999975e-05)):
        wanted = torch.tensor([factor / 16, factor / 256], dtype=torch.float64)
        assert torch.allclose(decays(2, layer, 3, dtype=torch.float64), wanted, rtol=1e-8, atol=0)
    assert torch.allclose(decays(1, 0, 1), torch.tensor([1.00001 / 256]), rtol=1e-6, atol=0)
    assert torch.equal(decays(4, 5, 3), decays(4, 2, 3)), "a prediction module above the last layer decays as the last layer does"


def test_a_prediction_module_with_lightning_does_not_explode() -> None:
    from upslope.model.aux import Aux

    model = loud(config(LIGHTNING).replace(mtp=MTP(depth=2, block="rec")))
    aux = Aux(wants=frozenset({"mtp"}))
    model(tokens(200), aux=aux)
    assert all(h.isfinite().all() for h in aux.mtp)


PIECES = {
    "one shot": [(9, 4, 14)],
    "token by token": [(1, 1, 1)] * 4,
    "ragged": [(3, 1, 7), (1, 1, 1), (2, 5, 1), (3, 1, 6)],
    "longer than a chunk": [(2, 11, 5), (9, 1, 1), (1, 1, 1), (1, 3, 12)],
}


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("name", MIXERS)
def test_the_cache_continues_the_recurrence_and_holds_its_state(name: str, pieces: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of unequal length share a rectangle: its padding must leave outputs and states as if each row stood alone."""
    monkeypatch.setattr(scan_module, "SCAN_CHUNK", 4)
    model, slots, layer = model_of(name), (3, 0, 2), 2
    cache = Cache(model.config, 4, dtype=torch.float64)
    mixer, memory = mixer_at(model, layer), cache.layers[layer]
    for data in memory.data.values():
        data.fill_(7.0)  # what an earlier tenant left must not matter
    seen = [inputs(0)] * 3
    for k, lengths in enumerate(PIECES[pieces]):
        new = [inputs(n, seed=10 * k + i) for i, n in enumerate(lengths)]
        flow = flow_of(lengths, torch.float64, cache, slots)
        got = mixer(torch.cat(new), flow, memory).split(lengths)
        seen = [torch.cat(pair) for pair in zip(seen, new)]
        for x, out, n, slot in zip(seen, got, lengths, slots):
            wanted, state = naive(model, x, layer)
            assert (out - wanted[-n:]).abs().max() <= EXACT
            assert (memory.data["state"][slot] - state).abs().max() <= EXACT
            if "conv" in memory.data:
                taps = mixer.config.conv - 1
                raw = (x @ mixer.in_proj.weight.T).split(mixer.sizes, 1)[1]
                last = F.pad(raw, (0, 0, taps, 0))[-taps:].T
                assert (memory.data["conv"][slot] - last).abs().max() <= EXACT
    assert (memory.data["state"][1] == 7.0).all()


@pytest.mark.parametrize("name", MIXERS)
def test_a_fork_goes_its_own_way_and_no_state_goes_back(name: str) -> None:
    model, stem = model_of(name), tokens(7)
    cache = Cache(model.config, 3, dtype=torch.float64)
    model(stem, cache=cache.at([1]))
    cache.fork(1, 0)
    for slot, seed in ((1, 5), (0, 6), (1, 7)):
        if slot == 1 and seed == 7:
            cache.free(1)
            stem = stem[:0]
        end = tokens(5, seed=seed)
        got = torch.cat([model(end[i : i + 1], cache=cache.at([slot])) for i in range(5)])
        assert (got - model(torch.cat((stem, end)))[-5:]).abs().max() <= EXACT
    assert not cache.rewind(0, 3)
    assert cache.rewind(0, 0)


@pytest.mark.parametrize("name", MIXERS)
def test_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By finite differences over two packed segments, and against the recurrence's for every weight."""
    monkeypatch.setattr(scan_module, "SCAN_CHUNK", 2)
    model, lengths = model_of(name), (4, 3)
    mixer = mixer_at(model, 2)
    x = inputs(sum(lengths)).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: mixer(t, flow_of(lengths, t.dtype)), (x,), fast_mode=True)
    weights = dict(mixer.requires_grad_().named_parameters())
    probe = inputs(sum(lengths), seed=3)
    ours = torch.autograd.grad((mixer(x, flow_of(lengths, x.dtype)) * probe).sum(), [x, *weights.values()])
    plain = torch.cat([naive(model, part, 2)[0] for part in x.split(lengths)])
    wanted = torch.autograd.grad((plain * probe).sum(), [x, *weights.values()])
    for label, a, b in zip(("x", *weights), ours, wanted):
        assert b.norm() > 1e-6, label
        assert (a - b).norm() <= EXACT * max(1.0, float(b.norm())), label


@pytest.mark.parametrize("name", ["lightning", "mamba2"])
def test_float32_stays_near_float64_over_many_tokens(name: str) -> None:
    """Tokens that forget all stand between tokens that forget nothing: differences of large sums must not lose the small ones."""
    wide, x = model_of(name), inputs(300)
    narrow = model_of(name, torch.float32)
    for model in (wide, narrow):
        mixer = mixer_at(model, 0)
        if name == "mamba2":
            mixer.A_log.fill_(math.log(16.0))
            mixer.config = mixer.config.replace(dt_min=1e-6)
            mixer.in_proj.weight[-6:] *= 12
    got = mixer_at(narrow, 0)(x.float(), flow_of((300,), torch.float32))
    wanted = mixer_at(wide, 0)(x, flow_of((300,), x.dtype))
    assert got.dtype == torch.float32
    assert (got - wanted).norm() <= 2e-6 * wanted.norm()


@pytest.mark.parametrize("name", ["lightning", "mamba2"])
def test_under_autocast_scan_and_state_stay_in_float32(name: str) -> None:
    model, x = model_of(name, torch.float32), inputs(40, torch.float32)
    cache = Cache(model.config, 1)
    wanted = mixer_at(model, 2)(x, flow_of((40,), x.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = mixer_at(model, 2)(x, flow_of((40,), x.dtype, cache, (0,)), cache.layers[2])
    assert (got.float() - wanted).norm() <= 0.03 * wanted.norm()
    state = cache.layers[2].data["state"]
    assert state.dtype == torch.float32
    assert not torch.equal(state, state.bfloat16().float())


def test_initial_values_of_mamba() -> None:
    """A uniform in [1, 16], Δ log-uniform in its range, taps uniform in ± 1/sqrt(taps); D and gains 1, biases 0."""
    many = Mamba2(heads=400, head_dim=1, state=4, groups=1, conv=4, dt_min=1e-3, dt_max=0.1)
    mixer = mixer_at(initialise(Transformer(config(many)), 0).requires_grad_(False), 0)
    a, dt = mixer.A_log.exp(), F.softplus(mixer.dt_bias)
    assert 1 <= a.min() < 1.3
    assert 15.7 < a.max() <= 16.0001
    assert abs(float(a.mean()) - 8.5) < 0.8
    assert 0.999e-3 <= dt.min() < 1.1e-3
    assert 0.09 < dt.max() <= 0.1001
    assert abs(float(dt.log10().mean()) + 2) < 0.1
    taps = mixer.conv.weight
    assert 0.49 < taps.abs().max() <= 0.5
    assert abs(float(taps.std()) - 1 / math.sqrt(12)) < 0.02
    assert (mixer.conv.bias == 0).all()
    assert (mixer.D == 1).all()
    assert (mixer.norm.weight == 1).all()
    assert (mixer.o.weight == 0).all(), "the scheme's own rule for projections into the residual stream"
    low = mixer_at(initialise(Transformer(config(many.replace(dt_min=1e-7))), 0), 0)
    assert F.softplus(low.dt_bias).min() >= 0.999e-4
    again = mixer_at(initialise(Transformer(config(many)), 1), 0)
    assert not torch.equal(again.A_log, mixer.A_log)


def test_only_true_matrices_are_matrices_to_the_optimizer() -> None:
    for name, matrices in (("mamba2", {"in_proj", "o"}), ("lightning", {"q", "k", "v", "gate", "o"})):
        mixer = mixer_at(model_of(name), 0)
        found = {n.split(".")[0] for n, p in mixer.named_parameters() if role(f"blocks.0.mixer.{n}", p) == "matrix"}
        assert found == matrices
        assert {n.split(".")[0] for n, p in mixer.named_parameters() if decayed(f"blocks.0.mixer.{n}", p)} == matrices


@pytest.mark.parametrize("kinds", [("linear_attention",) * 2, ("full_attention",), ("linear_attention", "full_attention")])
def test_minimax_is_written_with_any_mix_of_layers(kinds: tuple[str, ...]) -> None:
    """Also without the softmax layers that other families take the head's width from."""
    data = {"hidden_size": 24, "vocab_size": 8, "max_position_embeddings": 9, "rms_norm_eps": 1e-5, "num_hidden_layers": len(kinds)}
    data |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 1, "intermediate_size": 5}
    family = FAMILIES["minimax"]
    read = family.read({**data, "layer_types": list(kinds), "head_dim": 16, "rope_theta": 50.0})
    assert {layer.mixer.head_dim for layer in read.layers()} == {16}  # type: ignore[union-attr]
    written = family.write(read)
    assert isinstance(written, dict), written
    assert (written["layer_types"], written["head_dim"]) == (list(kinds), 16)
    assert family.read(written) == read
