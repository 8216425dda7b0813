"""The rehearsal against modules on the meta device, hand computation on small meshes, and properties that any estimate must have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from upslope.config import UsageError
from upslope.model.config import ModelConfig, dense
from upslope.model.transformer import Transformer
from upslope.optim.build import build
from upslope.optim.config import AdamW, Muon
from upslope.optim.roles import role
from upslope.parallel.config import Mesh
from upslope.recipes.labs import get
from upslope.recipes.published_runs import published, summary, table
from upslope.train.rehearsal.cost import Collective, collectives, work
from upslope.train.rehearsal.job import Job
from upslope.train.rehearsal.machines import MACHINES, Machine, from_file, machine
from upslope.train.rehearsal.memory import memory
from upslope.train.rehearsal.mesh import problems
from upslope.train.rehearsal.plan import Rehearsal, rehearse
from upslope.train.rehearsal.sizes import counted, entries

PRESETS = ("llama3_8b", "qwen3_235b", "deepseek_v3")
H100 = MACHINES["h100"]
SMALL = dense(64, 4, 4, 4, 16, 128, context=256, vocab=256, qk_norm=False)
JOB = Job(batch=64 * 32, length=32, precision="fp32", recompute="none", chunk=None)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("optim", [AdamW(), Muon()], ids=["adamw", "muon"])
def test_weight_and_state_bytes_equal_those_of_the_meta_model(name: str, optim: AdamW | Muon) -> None:
    model = get(name).model
    named = [(n, p) for n, p in Transformer(model, device="meta").named_parameters() if p.requires_grad]
    held = rehearse(model, Job(batch=4096, optim=optim), 1, Mesh(), H100).memory
    count = sum(p.numel() for _, p in named)
    assert held.weights == held.gradients == 4 * count
    one = sum(p.numel() for n, p in named if isinstance(optim, Muon) and role(n, p) == "matrix")
    assert held.states == 4 * (2 * count - one)


@pytest.mark.parametrize("optim", [AdamW(), Muon(), AdamW(narrow_weights="stochastic"), Muon(narrow_weights="stochastic")], ids=str)
@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_state_bytes_equal_those_of_the_optimizer(optim: AdamW | Muon, weights: str) -> None:
    model = Transformer(SMALL).to(torch.bfloat16 if weights == "bf16" else torch.float32)
    optimizer = build(model.named_parameters(), optim)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(1e-3)
    held = rehearse(SMALL, JOB.replace(optim=optim, weights=weights), 1, Mesh(), H100).memory
    assert held.states == sum(t.nbytes for t in optimizer.state().values() if t.ndim)


@pytest.mark.parametrize("name", ["llama3_8b", "qwen3_235b", "deepseek_v32", "glm_52", "gemma3_27b", "nemotron3_nano", "deepseek_v4_flash"])
def test_entries_sum_to_the_model(name: str) -> None:
    model = get(name).model
    parts = entries(model, 8192)
    assert sum(e.parameters for e in parts) == model.params()
    plain = model.replace(mtp=None) if model.mtp is None or model.mtp.block in dict(model.pattern) else None
    if plain is not None:
        assert sum(e.products + e.attention for e in entries(plain, 8192)) == pytest.approx(plain.flops(8192), rel=1e-12)


def _saved(depth: int) -> int:
    """Bytes of distinct storages, parameters left out, that autograd keeps of a forward pass of 32 tokens."""
    model, found = Transformer(SMALL.replace(pattern=(("dense", depth),))), dict[int, int]()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    alive = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        s = t.untyped_storage()
        if t.is_floating_point() and s.data_ptr() not in own:
            found[s.data_ptr()] = s.nbytes()
            alive.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = model(torch.arange(32))
    assert out is not None
    return sum(found.values())


def test_activations_are_near_what_autograd_keeps() -> None:
    """Of one block, as the difference of two depths. By hand: two halves with input and normed input, q, k, v, out, four hidden."""
    expected = memory(counted(entries(SMALL, 32)[1:2]), 1, JOB, Mesh(), 256, 64).activations
    assert expected == 4 * 32 * (4 * 64 + 4 * 64 + 4 * 128)
    kept = (_saved(6) - _saved(2)) / 4
    assert expected == pytest.approx(kept, rel=0.02)


def test_what_each_policy_of_recomputation_keeps_and_repeats() -> None:
    """By hand, 32 tokens of a block of width 64 with 4 heads of 16, no grouping, hidden 128; elements times 4 bytes."""
    parts, model = counted(entries(SMALL, 32)[1:2]), SMALL
    own = {p: memory(parts, 1, JOB.replace(recompute=p), Mesh(), 256, 64).activations for p in ("none", "selective", "alternate", "full")}
    whole = own["none"]
    assert own["selective"] - whole == 4 * 32 * (2 * 64 + 4 * 64 + 2 * 128)  # two block inputs, q, k, v, out; gate, up
    assert own["alternate"] - whole == 4 * 32 * (2 * 64 + 3 * 64 + 128)  # without k and up
    assert own["full"] - whole == 4 * 32 * 64
    done = {p: work(parts, 1, JOB.replace(recompute=p), Mesh(), model.d_model).products for p in own}
    assert done["none"] == done["selective"] == 32 * 3 * entries(SMALL, 32)[1].products
    assert done["alternate"] - done["none"] == 32 * 2 * 64 * (64 + 64 + 128)  # k, output, up
    assert done["full"] == done["none"] * 4 / 3


def test_logits_in_chunks_or_through_an_unfused_loss() -> None:
    parts, job = counted(entries(SMALL, 32)), JOB.replace(precision="bf16")
    held = [memory(parts, 1, job.replace(chunk=c), Mesh(), 256, 64).logits for c in (None, 32, 8)]
    assert held == [32 * 256 * 12, 32 * 256 * 8, 8 * 256 * 8]


def _sent(mesh: Mesh, job: Job = JOB, model: ModelConfig = SMALL) -> dict[str, Collective]:
    m = job.batch // (job.length * job.micro * mesh.data)
    return {c.name: c for c in collectives(counted(entries(model, job.length)), m, job, mesh, H100, model.d_model)}


def test_bytes_of_collectives_equal_hand_computation() -> None:
    p = SMALL.params()
    fsdp = _sent(Mesh(fsdp=4))  # 16 micro-steps
    assert fsdp["all-gather weights"].sent == 2 * 16 * 4 * p * 3 / 4
    assert fsdp["reduce-scatter gradients"].sent == 16 * 4 * p * 3 / 4
    once = _sent(Mesh(fsdp=4, zero=1))
    assert (once["all-gather weights"].sent, once["reduce-scatter gradients"].sent) == (4 * p * 3 / 4, 4 * p * 3 / 4)
    hsdp = _sent(Mesh(dp=2, fsdp=2))
    assert hsdp["all-reduce gradients of replicas"].sent == 2 * (1 / 2) * 4 * p / 2
    joins = 4 * 4 + 2  # two halves, forward and backward, of four blocks; embedding; head
    for sequence, name in ((True, "all-gather + reduce-scatter activations"), (False, "all-reduce activations")):
        assert _sent(Mesh(tp=2, sequence=sequence))[name].sent == joins * 64 * 2 * (1 / 2) * 32 * 64 * 4
    heads = _sent(Mesh(cp=2))  # q, k, v, out of 16 tokens of a rank, forward and backward, half of it leaves
    assert heads["all-to-all heads"].sent == 64 * 4 * 2 * 16 * 4 * 64 * 4 / 2
    pipe = _sent(Mesh(pp=4))
    assert pipe["send and receive activations"].sent == 2 * 64 * 32 * 64 * 4
    assert _sent(Mesh()) == {}


def test_bytes_of_experts_equal_hand_computation() -> None:
    model = get("qwen3_235b").model
    job = Job(batch=8 * 4096, length=4096)
    sent = _sent(Mesh(fsdp=8, ep=4), job, model)["all-to-all experts"]
    assert sent.sent == 94 * 4 * 4096 * 8 * 4096 * 2 * 3 / 4  # blocks, dispatch and combine twice, tokens, k, width, bytes
    shares = _sent(Mesh(fsdp=8, ep=4), job, model)
    experts = sum(e.experts for e in entries(model, 4096))
    assert shares["all-gather weights of experts"].sent == 2 * experts / 4 * 2 * 1 / 2


@pytest.mark.parametrize(
    ("mesh", "says"),
    [
        (Mesh(tp=3), "heads = 4 is not divisible by tp = 3"),
        (Mesh(pp=5), "layers = 4 is not divisible by pp = 5"),
        (Mesh(fsdp=3), "batch = 2048 is not divisible by length x micro x dp x fsdp = 96"),
        (Mesh(cp=3), "length = 32 is not divisible by cp = 3"),
        (Mesh(cp=8), "heads = 4 is not divisible by tp x cp = 8"),
        (Mesh(fsdp=4, ep=3), "ranks of fsdp x cp = 4 is not divisible by ep = 3"),
        (Mesh(fsdp=4, ep=2), "the model has no experts"),
        (Mesh(dp=64, pp=2, virtual=2), "micro-steps = 1 is not divisible by pp (virtual > 1) = 2"),
    ],
    ids=str,
)
def test_illegal_splits_are_named(mesh: Mesh, says: str) -> None:
    assert any(says in p for p in problems(SMALL, JOB, mesh.ranks, mesh))
    with pytest.raises(UsageError) as error:
        rehearse(SMALL, JOB, mesh.ranks, mesh, H100)
    assert len(str(error.value).splitlines()) <= 6


def test_more_illegal_splits() -> None:
    assert "is not ranks = 8" in problems(SMALL, JOB, 8, Mesh(fsdp=4))[0]
    model = get("qwen3_235b").model
    assert any("experts = 128 is not divisible by ep = 3" in p for p in problems(model, JOB, 3, Mesh(fsdp=3, ep=3)))
    odd = dense(64, 4, 4, 4, 16, 160, context=256, vocab=256)
    fp8 = JOB.replace(precision="fp8")
    assert any("hidden = 160 is not divisible by tp x tile of 128 = 128" in p for p in problems(odd, fp8, 1, Mesh()))
    assert problems(get("llama3_405b").model, Job(batch=2048 * 8192, length=8192), 16384, Mesh(fsdp=128, tp=8, pp=16)) == ()
    with pytest.raises(UsageError, match="no legal mesh"):
        rehearse(SMALL, JOB, 7 * 11 * 13, None, H100)
    with pytest.raises(UsageError, match="vocab"):
        rehearse(SMALL.replace(vocab=0), JOB, 1, None, H100)


@pytest.mark.parametrize("axis", ["fsdp", "tp", "cp", "pp"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_more_ranks_never_need_more_memory_each(axis: str, recompute: str) -> None:
    """From two ranks on for fsdp: the first division adds the gathered entry, which one rank does not have."""
    model = get("llama3_8b").model
    job = Job.model_validate({"batch": 2**21, "length": 8192, "recompute": recompute, "micro": 4})
    sizes = (2, 4, 8, 16) if axis == "fsdp" else (1, 2, 4, 8)
    held = [rehearse(model, job, n, Mesh.model_validate({axis: n}), H100).memory for n in sizes]
    for a, b in zip(held, held[1:]):
        assert b.total <= a.total + (max(0.0, b.logits - a.logits) if axis == "pp" else 0)
        assert b.weights <= a.weights and b.states <= a.states


BASE = Job(batch=64 * 4096, length=4096, tokens=1e12)
CHANGES: dict[str, Any] = {
    "optim": Muon(),
    "batch": 128 * 4096,
    "length": 2048,
    "micro": 2,
    "precision": "fp8",
    "weights": "bf16",
    "gradients": "bf16",
    "states": "int8",
    "recompute": "full",
    "attention": "eager",
    "chunk": None,
    "overlap": "none",
    "imbalance": 1.5,
    "tokens": 2e12,
}


@pytest.mark.parametrize("field", Job.model_fields)
def test_each_field_of_the_job_changes_something(field: str) -> None:
    model = get("qwen3_235b").model
    base = BASE.replace(recompute="none") if field == "attention" else BASE
    mesh = Mesh(fsdp=16, ep=8)
    a, b = (rehearse(model, j, 16, mesh, H100).values() for j in (base, base.replace(**{field: CHANGES[field]})))
    assert a != b


@pytest.mark.parametrize(
    ("field", "value"),
    [("tp", 2), ("cp", 2), ("pp", 2), ("dp", 2), ("ep", 2), ("virtual", 2), ("zero", 1), ("zero", 2), ("sequence", False)],
)
def test_each_field_of_the_mesh_changes_something(field: str, value: Any) -> None:
    base = {"fsdp": 4, "tp": 1, "pp": 1} | ({"tp": 2} if field == "sequence" else {"pp": 2} if field == "virtual" else {})
    meshes = [Mesh.model_validate(base), Mesh.model_validate(base | {field: value})]
    a, b = (rehearse(get("qwen3_235b").model, BASE, m.ranks, m, H100) for m in meshes)
    assert (a.memory, a.time, a.collectives) != (b.memory, b.time, b.collectives)


def _time(r: Rehearsal) -> float:
    return r.time.step


@pytest.mark.parametrize("field", ["bf16", "fp8", "fp32", "bandwidth", "link", "network", "kernels", "attention", "wires"])
def test_each_rate_of_a_machine_changes_the_step(field: str) -> None:
    mesh, model = Mesh(dp=2, fsdp=8), get("qwen3_235b").model
    precision = field if field in ("bf16", "fp8", "fp32") else "bf16"
    job = Job.model_validate(BASE.model_dump() | {"overlap": "none", "precision": precision})
    slow = H100.replace(**{field: getattr(H100, field) / 1.5})
    assert _time(rehearse(model, job, 16, mesh, slow)) > _time(rehearse(model, job, 16, mesh, H100))


def test_rehearsing_loads_no_torch() -> None:
    code = "import sys, upslope.cli.rehearse as r; r.answer('llama3-8b', 8, None, None, None, {}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_price_memory_and_node_of_a_machine_count() -> None:
    model = get("llama3_8b").model
    a = rehearse(model, BASE, 16, Mesh(fsdp=16), H100.replace(price=2.0))
    assert a.price == 2.0 * (a.hours or 0) and a.fits
    assert not rehearse(model, BASE, 16, Mesh(fsdp=16), H100.replace(memory=1e9)).fits
    assert not rehearse(model, BASE, 16, Mesh(fsdp=16), H100.replace(usable=0.01)).fits
    assert all(not c.within for c in a.collectives)
    assert all(c.within for c in rehearse(model, BASE, 16, Mesh(fsdp=16), H100.replace(node=16)).collectives)


def test_operations_and_exchanges_follow_the_published_formulas() -> None:
    """Written out for Llama 3 8B: 3 forward passes of 2 N + 2 h (d_qk + d_v) T/2 a layer; and for V3's experts: 2 k d a token and layer."""
    length, d, hidden, vocab = 8192, 4096, 14_336, 128_256
    matrices = 32 * (2 * d * d + 2 * d * 1024 + 3 * d * hidden) + d * vocab
    attention = 32 * 2 * 32 * (128 + 128) * length / 2
    found = rehearse(get("llama3_8b").model, Job(batch=8 * length, length=length), 8, Mesh(fsdp=8), H100)
    assert found.flops == pytest.approx(3 * 8 * length * (2 * matrices + attention), rel=1e-3)
    job = Job(batch=8 * 4096, length=4096)
    sent = next(c for c in rehearse(get("deepseek_v3").model, job, 8, Mesh(fsdp=8, ep=8), H100).collectives if c.axis == "ep")
    forward = 2 * 8 * 7168 * 2  # dispatch and combine, k, width, bytes
    layers = 58 + 1  # with the module of MTP
    assert sent.sent == 4096 * layers * 2 * forward * 7 / 8


def test_bubble_is_the_pipelines() -> None:
    r = rehearse(SMALL, JOB.replace(overlap="all"), 4, Mesh(pp=4), H100)
    assert r.time.bubble / r.time.compute == pytest.approx(3 / 64)
    half = rehearse(SMALL, JOB.replace(overlap="all"), 2, Mesh(pp=2, virtual=2), H100)
    assert half.time.bubble / half.time.compute == pytest.approx(1 / 2 / 64)


def test_batch_arithmetic_in_one_sentence() -> None:
    r = rehearse(get("llama3_8b").model, Job(batch=128 * 8 * 4096), 128, Mesh(fsdp=128), H100)
    assert r.batch == "global batch 4.2M tokens = 128 ranks x 8 micro-steps x 4,096 tokens"


def test_the_suggested_mesh_is_the_fastest_that_fits() -> None:
    model, job = get("llama3_8b").model, Job(batch=2**20, length=4096)
    best = rehearse(model, job, 16, None, H100)
    assert best.fits and best.tried and problems(model, job, 16, best.mesh) == ()
    for mesh in (Mesh(fsdp=16), Mesh(fsdp=8, tp=2), Mesh(fsdp=4, pp=4), Mesh(dp=2, fsdp=8)):
        other = rehearse(model, job, 16, mesh, H100)
        assert not other.fits or _time(best) <= _time(other)
    assert not rehearse(get("llama3_405b").model, job, 8, None, H100).fits


def test_rendering_is_short_and_values_are_plain() -> None:
    job = BASE.replace(optim=Muon(), tokens=1e12)
    r = rehearse(get("qwen3_235b").model, job, 64, Mesh(fsdp=4, tp=4, cp=2, pp=2, ep=4), H100)
    text = r.render()
    assert len(text.splitlines()) <= 40 and "fits in 73.6" in text and "all-to-all experts" in text
    values = json.loads(json.dumps(r.values()))
    assert values["memory"]["total"] == r.memory.total and values["time"]["step"] == r.time.step


def test_machines_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('like = "mi300x"\nname = "ours"\nnetwork = 5e10\nprice = 3.5\n')
    mine = machine(str(path))
    assert isinstance(mine, Machine) and (mine.name, mine.price, mine.bf16) == ("ours", 3.5, MACHINES["mi300x"].bf16)
    with pytest.raises(UsageError, match="network"):
        rehearse(get("llama3_8b").model, BASE, 16, Mesh(fsdp=16), MACHINES["mi300x"])
    path.write_text('like = "h100"\nmemory = -1\n')
    with pytest.raises(UsageError, match="memory"):
        from_file(path)
    for bad in ("h1000", str(tmp_path / "none.toml")):
        with pytest.raises(UsageError):
            machine(bad)
    with pytest.raises(UsageError, match="fp8"):
        rehearse(get("llama3_8b").model, BASE.replace(precision="fp8"), 8, Mesh(fsdp=8), MACHINES["a100"])


def test_published_runs_stand_beside_their_predictions() -> None:
    rows = published()
    assert len({r.run for r in rows}) >= 6 and {r.mark for r in rows} <= {"C", "M", "S"}
    assert all(r.ratio == r.predicted / r.published > 0 for r in rows)
    assert [r.run for r in rows if r.far and not r.why] == [], "a miss beyond the band has no stated reason"
    text = table(rows)
    assert all(r.run in text and (r.why in text or not r.far) for r in rows)
    assert f"{len(rows) - sum(r.quantity == 'GB a rank' for r in rows)} published runs" in summary(rows)


def test_casts_round_fp8_products_are_five_bytes_an_element() -> None:
    mesh, model, job = Mesh(fsdp=8), get("llama3_8b").model, Job(batch=8 * 8192, length=8192)
    parts = counted(entries(model, 8192))
    plain, cast = (work(parts, 1, job.replace(precision=p), mesh, model.d_model).traffic for p in ("bf16", "fp8"))
    assert cast - plain == pytest.approx(plain / 5 / 2 * 5)
