"""Groups, collectives, the sharding table and tensor parallelism, on gloo ranks against the whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.model.support import loud
from tests.parallel.cases import CASES, FFN, Found, Part, by_product, differences, gqa, installed, made, mla, model_of, objective, too_far
from tests.parallel.support import distance, on_ranks
from upslope.config import UsageError
from upslope.model.aux import ALL
from upslope.model.config import Layer
from upslope.parallel import comm
from upslope.parallel.config import Mesh
from upslope.parallel.groups import Axis, Groups, spans
from upslope.parallel.table import TABLE, Placement, Rule
from upslope.parallel.tensor import apply_tensor

LENGTHS = (7, 3, 8, 1)


def imagined(mesh: Mesh, rank: int) -> Groups:
    """A rank's groups without process groups: enough for placements."""
    sizes = {"tp": mesh.tp, "ep": mesh.ep}
    index = {"tp": rank % mesh.tp, "ep": rank // mesh.tp % mesh.ep}
    return Groups(mesh, rank, "cpu", {n: Axis(n, sizes[n], index[n], tuple(range(sizes[n])), None) for n in sizes})


# ── groups and collectives ───────────────────────────────────────────────────────────────────────────────────────────────


def lines(mesh: Mesh) -> dict[str, tuple[int, ...]]:
    groups = Groups.of(mesh)
    assert all(a.ranks[a.index] == groups.rank and len(a.ranks) == a.size for a in groups.axes.values())
    assert groups.device_mesh("dp", "shards").mesh.tolist() == [[0, 1, 2, 3]] and groups.device_mesh("cp").size() == 2
    assert groups.device_mesh("fsdp", "cp").mesh.tolist() == [[0, 1], [2, 3]]
    return {name: a.ranks for name, a in groups.axes.items()}


def adjoint(f: Any, x: Tensor, axis: Axis) -> float:
    """⟨f(x), g⟩ - ⟨x, fᵀ(g)⟩ over all ranks together, f linear from the ranks' x to the ranks' results, relative."""
    x = x.clone().requires_grad_()
    y = f(x)
    g = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(7 + axis.index))
    y.backward(g)
    assert x.grad is not None
    sides = comm.summed(torch.stack([(y * g).sum(), (x * x.grad).sum()]), axis)
    return float((sides[0] - sides[1]).abs() / sides[0].abs())


def collectives() -> dict[str, float]:
    """Adjointness of those whose backward is the transpose, and values of all, over four ranks."""
    axis = Groups.of(Mesh(tp=4))["tp"]
    r = axis.index
    full = torch.arange(66.0, dtype=torch.float64).view(3, 11, 2)
    mine = comm.part(full, axis, 1) * (1 + r)
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(r))
    counts = torch.tensor([[0, 2, 1, 2], [3, 0, 0, 2], [0, 0, 0, 5], [1, 1, 3, 0]])
    sent, taken = counts[r].tolist(), counts[:, r].tolist()
    rows = torch.repeat_interleave(torch.arange(4), torch.tensor(sent)) + 10 * r
    expected = torch.cat([torch.full((n,), 10 * i + r) for i, n in enumerate(taken)])
    ends = [stop for _, stop in spans(11, 4)]
    scales = torch.tensor([1 + sum(j >= e for e in ends) for j in range(11)])[:, None]
    same = torch.ones(5, 3, dtype=torch.float64)
    return {
        "collect": adjoint(lambda t: comm.collect(t, axis, 1, 11), mine, axis),
        "exchange": adjoint(lambda t: comm.exchange(t, axis, sent, taken), x, axis),
        "joined": distance(comm.joined(mine, axis, 1, 11), full * scales),
        "exchanged": distance(comm.exchange(rows, axis, sent, taken), expected),
        "reduce": distance(comm.reduce(same * r, axis), same * 6),
        "first": distance(comm.summed(comm.first(same, axis), axis), same),
        "copy": slope(lambda t: comm.copy(t, axis), same, 4.0),
        "reduced": slope(lambda t: comm.reduce(t, axis), same, 1.0),
        "once": slope(lambda t: comm.once(t, axis), same, float(r == 0)),
        "firsts": slope(lambda t: comm.first(t, axis), same, 1.0),
        "gather": slope(lambda t: comm.gather(t, axis, 0, 20), same, 1.0),
        "collected": slope(lambda t: comm.collect(t, axis, 0, 20), same, 4.0),
    }


def slope(f: Any, x: Tensor, expected: float) -> float:
    """How far the gradient of Σ f(x), the same on every rank, is from a constant."""
    x = x.clone().requires_grad_()
    f(x).sum().backward()
    assert x.grad is not None
    return distance(x.grad, torch.full_like(x, expected))


# ── models ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Doubled(nn.Module):
    """A user's own channel mixer: the table's rules are all that it needs to be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.back = nn.Linear(16, 12), nn.Linear(12, 16)

    def forward(self, x: Tensor, flow: Any = None) -> Tensor:
        out: Tensor = self.back(torch.tanh(self.wide(x)))
        return out


def own_module() -> dict[str, float]:
    groups = Groups.of(Mesh(tp=2))
    rules = (Rule("Doubled", "wide.*", "tp", 0), Rule("Doubled", "back.weight", "tp", 1))
    whole = Doubled().double()
    for p in whole.parameters():
        nn.init.normal_(p, generator=torch.Generator().manual_seed(p.numel()))
    cut = Doubled().double()
    cut.load_state_dict(whole.state_dict())
    places = apply_tensor(cut, groups, TABLE.plus(*rules))
    x = torch.randn(5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pairs = []
    for model in (whole, cut):
        at = x.clone().requires_grad_()
        out = model(at)
        out.square().sum().backward()
        pairs.append((out, at.grad))
    (a, ga), (b, gb) = pairs
    assert ga is not None and gb is not None and cut.wide.weight.shape == (6, 16)
    found = {"out": distance(b, a), "input": distance(gb, ga)}
    for (n, p), q in zip(whole.named_parameters(), cut.parameters()):
        assert p.grad is not None and q.grad is not None
        found[n] = distance(q.grad, places[n].of(p.grad))
    return found


def rows(groups: Groups) -> float:
    """Tokens of the residual stream between two blocks on this rank."""
    model, part, seen = made(CASES["dense"]), Part(LENGTHS), []
    installed(model, groups)
    model.blocks[1].register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    model(part.ids, part.seg)
    return float(seen[0])


def low_precision() -> float:
    """bfloat16 under tp against bfloat16 whole: the distance of hidden states."""
    groups = Groups.of(Mesh(tp=2))
    a, b = loud(CASES["dense"]), loud(CASES["dense"])
    apply_tensor(b, groups)
    part = Part(LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        return distance(b(part.ids, part.seg), a(part.ids, part.seg))


def everything_on_two() -> dict[str, Any]:
    groups = Groups.of(Mesh(tp=2))
    found: dict[str, Any] = {name: differences(config, groups, LENGTHS) for name, config in CASES.items()}
    found["fused"] = differences(CASES["dense"], groups, LENGTHS, ALL - {"max_logit"})
    found["product"] = differences(CASES["experts"], groups, LENGTHS, prepare=by_product)
    whole = Groups.of(Mesh(tp=2, sequence=False))
    found["no pieces"] = differences(CASES["dense"], whole, LENGTHS) | differences(CASES["tied"], whole, LENGTHS)
    found["rows"] = {"with pieces": rows(groups), "without": rows(whole)}
    return found | {"own module": own_module(), "bf16": {"hidden": low_precision()}}


def everything_on_four() -> dict[str, Any]:
    groups = Groups.of(Mesh(tp=4))
    found: dict[str, Any] = {name: differences(CASES[name], groups, LENGTHS) for name in ("dense", "experts")}
    return found | {"collectives": collectives(), "lines": lines(Mesh(fsdp=2, cp=2, ep=2))}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return on_ranks(2, everything_on_two, tmp_path_factory.mktemp("tp2"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(4, everything_on_four, tmp_path_factory.mktemp("tp4"))


@pytest.mark.parametrize("case", [*CASES, "fused", "no pieces", "product", "own module"])
def test_cut_in_two_a_model_says_and_learns_what_the_whole_one_does(two: Found, case: str) -> None:
    assert not too_far(two, case)


@pytest.mark.parametrize("case", ["dense", "experts"])
def test_cut_in_four_as_well(four: Found, case: str) -> None:
    assert not too_far(four, case)


def test_sequence_cuts_the_stream_between_products(two: Found) -> None:
    assert [rank["rows"] for rank in two] == [{"with pieces": 10, "without": 19}, {"with pieces": 9, "without": 19}]


def test_bf16_differs_by_its_rounding_alone(two: Found) -> None:
    assert all(0 < rank["bf16"]["hidden"] < 0.05 for rank in two)


def test_collectives_and_their_gradients(four: Found) -> None:
    assert not too_far(four, "collectives")


def test_groups_follow_the_mesh(four: list[dict[str, Any]]) -> None:
    found = [rank["lines"] for rank in four]
    assert [f["cp"] for f in found] == [(0, 1), (0, 1), (2, 3), (2, 3)]
    assert [f["fsdp"] for f in found] == [(0, 2), (1, 3), (0, 2), (1, 3)] == [f["data"] for f in found] == [f["edp"] for f in found]
    assert [f["ep"] for f in found] == [(0, 1), (0, 1), (2, 3), (2, 3)]
    assert {f["shards"] for f in found} == {f["tokens"] for f in found} == {f["world"] for f in found} == {(0, 1, 2, 3)}
    assert [f["tp"] for f in found] == [(r,) for r in range(4)] == [f["pp"] for f in found]


def test_one_rank_needs_no_ranks() -> None:
    groups = Groups.of(Mesh())
    assert all(a.size == 1 and a.group is None for a in groups.axes.values())
    a, b, part = made(CASES["dense"]), made(CASES["dense"]), Part(LENGTHS)
    apply_tensor(b, groups)
    assert torch.equal(objective(a, part, ALL)[0], objective(b, part, ALL)[0])


def test_more_ranks_than_there_are() -> None:
    with pytest.raises(UsageError, match="there are 1 ranks"):
        Groups.of(Mesh(tp=2))


# ── the table ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_placements_put_the_whole_together_again() -> None:
    config, mesh = CASES["experts"], Mesh(fsdp=2, tp=2, ep=2)
    model = made(config)
    places = [TABLE.placements(config, imagined(mesh, r)) for r in range(4)]
    assert places[0].keys() == model.tensors().keys()
    for name, tensor in model.tensors().items():
        seen = torch.zeros(tensor.shape)
        for r in range(4):
            place = places[r][name]
            assert tuple(place.of(tensor).shape) == place.local and place.shape == tuple(tensor.shape)
            place.of(seen).add_(1)
        assert (seen == 4 / 2 ** len(places[0][name].cuts)).all(), name  # each element on as many ranks as no axis cuts
    cut = {n.removeprefix("blocks.0."): [(c.axis, c.dim) for c in p.cuts] for n, p in places[0].items()}
    assert cut["mixer.k.weight"] == [("tp", 0)] and cut["mixer.o.weight"] == [("tp", 1)] and cut["mixer.q_norm.weight"] == []
    assert cut["ffn.experts.down"] == [("ep", 0), ("tp", 2)] and cut["ffn.experts.down_bias"] == [("ep", 0)]
    assert cut["ffn.router.weight"] == [] == cut["ffn.select_bias"] and cut["ffn.shared.up.weight"] == [("tp", 0)]


def test_the_same_leaf_is_cut_in_one_mixer_and_whole_in_another() -> None:
    places = TABLE.placements(CASES["others"], imagined(Mesh(tp=2), 1))
    assert places["blocks.0.mixer.q.weight"].cuts == () and places["blocks.3.mixer.q.weight"].over("tp") is not None


def test_a_table_is_a_value() -> None:
    less = type(TABLE)(tuple(r for r in TABLE.rules if r.owner != "GQA"))
    assert less.placements(CASES["tied"], imagined(Mesh(tp=2), 0))["blocks.0.mixer.q.weight"] == Placement((32, 16))
    assert "GQA.o.weight: dim 1 over tp" in str(TABLE) and TABLE.only("ep").owners() == {"Experts"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (model_of({"a": Layer(mixer=gqa(), ffn=FFN)}, ("a",)).replace(vocab=41), "embed.weight: dimension 0 of 41"),
        (model_of({"a": Layer(mixer=gqa(kv_heads=1), ffn=FFN)}, ("a",)), "kv_heads = 1 is not divisible by tp = 2"),
        (model_of({"a": Layer(mixer=mla(heads=3, value_dim=4), ffn=FFN)}, ("a",)), "heads = 3 is not divisible by tp = 2"),
        (model_of({"a": Layer(mixer=gqa(), ffn=FFN.replace(hidden=9))}, ("a",)), "dimension 0 of 9 is not divisible"),
    ],
)
def test_what_does_not_divide_is_refused(config: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        apply_tensor(made(config), imagined(Mesh(tp=2), 0))


def test_half_of_a_modules_rules_is_refused() -> None:
    less = type(TABLE)(tuple(r for r in TABLE.rules if (r.owner, r.leaf) != ("GQA", "o.weight")))
    with pytest.raises(UsageError, match=r"GQA has rules, but not that for 'o\.weight'"):
        apply_tensor(made(CASES["tied"]), imagined(Mesh(tp=2), 0), less)
