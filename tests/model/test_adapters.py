"""Adapters against direct formulas and finite differences; merging, taking off, files, formats of the base, training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.support import SMALL, loud, segments, tokens
from tests.train.support import CONFIG, batch, only
from upslope.config import UsageError
from upslope.machine.files import read_json, write_json
from upslope.model.adapter_base import HeldMatrix, nf4_values
from upslope.model.adapter_config import NF4, Bf16, DoRA, Int4, Int8, LoRA
from upslope.model.adapter_files import load_adapter, names, save_adapter
from upslope.model.adapters import adapted, attach, detach, folded, merge, slots, targets, without
from upslope.model.config import MLA, Attention, Gated, ModelConfig, MoE, Router, Tied, TopK, Untied
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.model.weights import export_hf, family_for, read_tensors, theirs_of
from upslope.optim.config import AdamW
from upslope.train.losses import Imitate
from upslope.train.trainer import Trainer

IDS, SEG = tokens(14), segments(9, 5)
EXPERTS = MoE(experts=4, expert=Gated(hidden=12), shared=Gated(hidden=8), router=Router(select=TopK(k=2)))


def config(kind: str) -> ModelConfig:
    if kind == "dense":
        return SMALL
    layer = SMALL.blocks["dense"]
    mixers: dict[str, Any] = {
        "mla": MLA(heads=2, q_latent=10, kv_latent=8, nope_dim=6, rope_dim=4, value_dim=6),
        "moe": layer.mixer,
        "biased": Attention(heads=2, kv_heads=1, head_dim=8, bias="all"),
        "tied": layer.mixer,
    }
    mixers["published_moe"] = layer.mixer
    ffn = {"moe": EXPERTS, "published_moe": EXPERTS.replace(shared=None)}.get(kind, layer.ffn)
    block = layer.replace(mixer=mixers[kind], ffn=ffn)
    head = Tied() if kind == "tied" else Untied()
    return ModelConfig.model_validate({**dict(SMALL), "blocks": {"dense": block}, "pattern": ("dense",), "head": head})


def made(kind: str = "dense", dtype: torch.dtype = torch.float64) -> Transformer:
    return loud(config(kind), dtype=dtype)


def first(model: Transformer) -> Any:
    return model.blocks[0]


def logits(model: Transformer) -> Tensor:
    return model.logits(model(IDS, SEG))


@torch.no_grad()
def moved(model: Transformer, by: float = 0.2) -> Transformer:
    """Every new parameter moved away from where it starts."""
    for i, (name, p) in enumerate(model.named_parameters()):
        if p.requires_grad:
            p.add_(by * torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=p.dtype))
            assert ".lora_" in name or name.endswith(".magnitude")
    return model


def formula(w: Tensor, slot: Any, scale: float) -> Tensor:
    v = w + scale * torch.einsum("...or,...ri->...oi", slot.lora_b, slot.lora_a)
    return v if slot.magnitude is None else v / v.square().sum(-1, keepdim=True).sqrt() * slot.magnitude[..., None]


def error(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


KINDS = ("dense", "mla", "moe", "biased", "tied")
CONFIGS = (LoRA(rank=3, alpha=5), DoRA(rank=3, alpha=5), LoRA(rank=4, alpha=5, scaling="sqrt_rank"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapter", CONFIGS, ids=lambda c: f"{c.kind}-{c.scaling}")
def test_attaching_changes_nothing_and_merging_keeps_what_was_learnt(kind: str, adapter: LoRA | DoRA) -> None:
    model, before = made(kind), made(kind)
    plain = logits(model)
    attach(model, adapter, 1)
    if isinstance(adapter, LoRA) or kind in ("dense", "tied"):
        assert torch.equal(logits(model), plain)
    else:
        assert error(logits(model), plain) < 1e-13  # W' = (m / ‖W‖) W and biases round
    learnt = logits(moved(model))
    assert error(learnt, plain) > 1e-3
    scale = 5 / adapter.rank ** (0.5 if adapter.scaling == "sqrt_rank" else 1)
    base = before.tensors()
    for name, (_, slot) in slots(model).items():
        assert error(folded(model)[name], formula(base[name], slot, scale)) < 1e-14
    whole = folded(model)
    merge(model)
    assert error(logits(model), learnt) < 1e-12
    assert set(whole) == set(model.tensors()) == set(base) and all(torch.equal(whole[n], t) for n, t in model.tensors().items())
    assert type(first(model).mixer) is type(first(before).mixer) and type(first(model).mixer.o) is type(first(before).mixer.o)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [n for n, _ in before.named_parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_taking_off_restores_the_base_to_the_bit_and_without_is_the_base(kind: str) -> None:
    model, before = made(kind), made(kind)
    attach(model, DoRA(rank=2), 0)
    moved(model)
    with without(model):
        assert torch.equal(logits(model), logits(before))
    assert not torch.allclose(logits(model), logits(before))
    detach(model)
    assert adapted(model) is None
    assert list(model.tensors()) == list(before.tensors())
    assert all(torch.equal(a, b) for a, b in zip(model.tensors().values(), before.tensors().values()))


@pytest.mark.parametrize("kind", ["dense", "mla", "moe"])
@pytest.mark.parametrize("adapter", [LoRA(rank=2), DoRA(rank=2, norm="exact"), LoRA(rank=2, base=Int8())], ids=["lora", "dora", "int8"])
def test_gradients_reach_adapters_only_and_equal_finite_differences(kind: str, adapter: LoRA | DoRA) -> None:
    model = made(kind)
    attach(model, adapter, 0)
    moved(model)
    weight = torch.randn(len(IDS), 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def value() -> Tensor:
        return (torch.log_softmax(logits(model), -1) * weight).sum()

    value().backward()
    seen = {n for n, p in model.named_parameters() if p.grad is not None}
    new = {n for n, p in model.named_parameters() if ".lora_" in n or n.endswith(".magnitude")}
    assert seen == new and all(not p.requires_grad for n, p in model.named_parameters() if n not in new)
    step = 1e-6
    for n, p in model.named_parameters():
        if n not in new or ".1." in n:
            continue
        direction = torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=p.dtype)
        assert p.grad is not None
        with torch.no_grad():
            p.add_(step * direction)
            up = value()
            p.sub_(2 * step * direction)
            down = value()
            p.add_(step * direction)
        slope = float((up - down) / (2 * step))
        assert float((p.grad * direction).sum()) == pytest.approx(slope, rel=2e-5, abs=1e-5), n


def test_dora_with_a_constant_norm_has_the_gradient_of_the_paper() -> None:
    model = made()
    attach(model, DoRA(rank=2, alpha=3, targets=("blocks.0.mixer.q",)), 0)
    moved(model)
    slot, w, scale = first(model).mixer.q._modules["weight"], first(model).mixer.q._parameters["weight"], 1.5
    x = torch.randn(7, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = torch.randn(7, w.shape[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (first(model).mixer.q(x) * g).sum().backward()
    v = w + scale * slot.lora_b @ slot.lora_a
    norm, to_w = v.norm(dim=1), g.T @ x  # the gradient of W'
    to_v = (slot.magnitude / norm)[:, None] * to_w  # eq. 11: ‖V‖ counts as a constant
    assert error(slot.magnitude.grad, (to_w * v).sum(1) / norm) < 1e-12
    assert error(slot.lora_a.grad, scale * slot.lora_b.T @ to_v) < 1e-12
    assert error(slot.lora_b.grad, scale * to_v @ slot.lora_a.T) < 1e-12


def test_absorbed_latent_attention_reads_the_adapted_matrix() -> None:
    model = made("mla")
    attach(model, LoRA(rank=2), 0)
    moved(model)
    expanded = logits(model)
    first(model).mixer.absorb = True
    assert error(logits(model), expanded) < 1e-12


FIELDS: dict[str, Any] = {
    "rank": 5,
    "alpha": 3.0,
    "scaling": "sqrt_rank",
    "draw": "normal",
    "targets": ("*.q",),
    "skip": ("*.q",),
    "base": NF4(),
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_counts(field: str) -> None:
    def result(c: LoRA) -> Tensor:
        model = made()
        attach(model, c, 0)
        with torch.no_grad():
            for _, slot in slots(model).values():
                if slot.lora_b is not None:
                    slot.lora_b.fill_(0.1)
        return logits(model)

    assert error(result(LoRA(rank=2).replace(**{field: FIELDS[field]})), result(LoRA(rank=2))) > 1e-4


def test_held_and_blocks_and_norm_and_the_seed_count() -> None:
    def result(c: LoRA | DoRA, seed: int = 0) -> Tensor:
        model = made()
        attach(model, c, seed)
        return logits(model)

    some = LoRA(rank=2, base=Int4(), targets=("*.q",))
    assert error(result(some.replace(held=("*.up",))), result(some)) > 1e-4
    assert error(result(some.replace(base=Int4(block=6))), result(some)) > 1e-4
    a, b, c = made(), made(), made()
    for model, where, seed in ((a, ("*.q", "*.k"), 0), (b, ("*.q",), 0), (c, ("*.q",), 1)):
        attach(model, LoRA(rank=2, targets=where), seed)
    drawn = [m.state_dict()["blocks.1.mixer.q.weight.lora_a"] for m in (a, b, c)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])  # by name, whatever else is adapted
    assert float(drawn[0].abs().max()) <= 24**-0.5


@pytest.mark.parametrize("block", [64, 10, 7])
@pytest.mark.parametrize("shape", [(5, 64), (3, 4, 70), (2, 9)])
def test_formats_round_to_the_nearest_within_their_bounds(shape: tuple[int, ...], block: int) -> None:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    w[..., 0, :] = 0
    bf16 = HeldMatrix(w, Bf16())()
    assert torch.equal(bf16, w.bfloat16().float())
    rows = HeldMatrix(w, Int8())
    assert rows.codes.dtype == torch.int8 and rows.codes.shape == w.shape
    top = w.abs().amax(-1, keepdim=True)
    assert bool(((rows() - w).abs() <= top / 254 * (1 + 1e-5)).all())
    for format, points in ((Int4(block=block), [n / 7 for n in range(-7, 8)]), (NF4(block=block), nf4_values())):
        held = HeldMatrix(w, format)
        got, table = held(), torch.tensor(points)
        assert held.codes.dtype == torch.uint8 and held.codes.shape[-1] == -(-(-(-shape[-1] // block) * block) // 2)
        half = float((table[1:] - table[:-1]).max()) / 2
        for start in range(0, shape[-1], block):
            part = w[..., start : start + block]
            scale = part.abs().amax(-1, keepdim=True)
            best = (part[..., None] - scale[..., None] * table).abs().amin(-1)  # brute force over every code
            off = (got[..., start : start + block] - part).abs()
            assert bool((off <= best + 1e-6).all()) and bool((off <= scale * half * (1 + 1e-5)).all())
    assert HeldMatrix(w.double(), NF4())().dtype == torch.float64


def test_the_values_of_nf4_are_those_published() -> None:
    published = [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0]
    published += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
    assert nf4_values() == pytest.approx(published, abs=1e-6)


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("base", [Bf16(), Int8(), Int4(), NF4()], ids=lambda b: b.kind)
def test_a_held_base_computes_as_its_rounded_weights(kind: str, base: Any) -> None:
    model, rounded = made(kind), made(kind)
    inside = {n: p for n, p in rounded.named_parameters() if n.startswith("blocks.") and p.ndim >= 2 and ".router." not in n}
    with torch.no_grad():
        for p in inside.values():
            p.copy_(HeldMatrix(p, base)())
    state = attach(model, LoRA(rank=2, base=base, targets=("*.q", "*.up")), 0)
    assert set(state.held) == set(inside) and not set(inside) & set(dict(model.named_parameters()))
    assert error(logits(model), logits(rounded)) < 1e-13
    learnt = logits(moved(model))
    whole = copy.deepcopy(model)
    assert error(logits(merge(whole)), learnt) < 1e-12
    detach(model)
    assert list(model.tensors()) == list(rounded.tensors())
    assert all(torch.equal(a, b) for a, b in zip(model.tensors().values(), rounded.tensors().values()))


def test_a_held_base_is_as_small_as_it_says() -> None:
    w = torch.randn(64, 128)
    sizes = [sum(b.numel() * b.element_size() for b in HeldMatrix(w, f).buffers()) * 8 / w.numel() for f in (Bf16(), Int8(), Int4(), NF4())]
    assert sizes == [16.0, 8.25, 4.5, 4.5]


def test_patterns_that_name_nothing_are_refused_with_names_that_exist() -> None:
    with pytest.raises(UsageError, match=r"'blocks.0.mixer.q_proj' names no matrix\nnear: blocks.0.mixer.q"):
        targets(made(), LoRA(targets=("blocks.0.mixer.q_proj",)))
    with pytest.raises(UsageError, match="only what `skip` names"):
        targets(made("moe"), LoRA(targets=("*.router",)))
    assert targets(made("moe"), LoRA(targets=("*.router",), skip=())) == ("blocks.0.ffn.router.weight",)
    found = targets(made("moe"), LoRA())
    assert "blocks.0.ffn.experts.gate" in found and "blocks.0.ffn.shared.down.weight" in found
    assert not any("router" in n or "embed" in n or n.startswith("head") for n in found)


def test_a_tied_table_is_refused_unless_it_is_meant() -> None:
    with pytest.raises(UsageError, match="embedding and head at once"):
        attach(made("tied"), LoRA(targets=("embed",)), 0)
    model = made("tied")
    attach(model, LoRA(targets=("embed",), tied="adapt"), 0)
    learnt = logits(moved(model))
    assert error(learnt, logits(made("tied"))) > 1e-3
    assert error(logits(merge(model)), learnt) < 1e-12
    free = made()
    attach(free, LoRA(targets=("embed", "head")), 0)
    assert error(logits(merge(moved(free))), logits(made())) > 1e-3


def test_misuse_is_refused() -> None:
    model = made()
    for wrong in (merge, detach):
        with pytest.raises(UsageError, match="no adapters"):
            wrong(model)
    attach(model, LoRA(), 0)
    with pytest.raises(UsageError, match="already"):
        attach(model, LoRA(), 0)
    zero = made()
    with torch.no_grad():
        first(zero).ffn.down.weight[3] = 0
    with pytest.raises(UsageError, match=r"'blocks.0.ffn.down.weight' has a row of zeros"):
        attach(zero, DoRA(), 0)
    assert adapted(zero) is None and all(p.requires_grad for p in zero.parameters())


@pytest.mark.parametrize("adapter", [LoRA(rank=4, base=NF4()), DoRA(rank=4), LoRA(rank=4)], ids=["nf4", "dora", "lora"])
@pytest.mark.parametrize("numerics", ["fp32", "bf16"])
def test_training_lowers_the_loss_and_leaves_the_base_alone(adapter: LoRA | DoRA, numerics: Any) -> None:
    data = only(batch(dtype=torch.float32), "imitate")
    model = initialise(Transformer(CONFIG), 0)
    attach(model, adapter, 0)
    new = (".lora_a", ".lora_b", ".magnitude")
    before = {n: t.clone() for n, t in model.state_dict().items() if not n.endswith(new)}
    trainer = Trainer(model, AdamW(lr=1e-2), numerics=numerics)
    assert len(trainer.optimizer.parameters) == sum(n.endswith(new) for n in model.state_dict())
    losses = [trainer.step(data, Imitate(), 1e-2).loss for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items() if n in before)
    saved = {n: t.clone() for n, t in trainer.state().items()}
    other = initialise(Transformer(CONFIG), 0)
    attach(other, adapter, 7)
    again = Trainer(other, AdamW(lr=1e-2), numerics=numerics)
    again.load(saved)
    assert again.step(data, Imitate(), 1e-2).loss == trainer.step(data, Imitate(), 1e-2).loss
    assert all(torch.equal(again.state()[n], t) for n, t in trainer.state().items())


@pytest.mark.parametrize("kind", ["moe", "mla", "tied"])
def test_training_works_with_experts_latents_and_a_tied_head(kind: str) -> None:
    data, model = only(batch(dtype=torch.float32), "imitate"), initialise(Transformer(config(kind)), 0)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    attach(model, LoRA(rank=4), 0)
    trainer = Trainer(model, AdamW(lr=1e-2))
    losses = [trainer.step(data, Imitate(), 1e-2).loss for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    detach(model)
    assert all(torch.equal(model.state_dict()[n], t) for n, t in before.items())


@pytest.mark.parametrize("kind", ["dense", "moe", "published_moe", "mla"])
@pytest.mark.parametrize("adapter", CONFIGS, ids=lambda c: f"{c.kind}-{c.scaling}")
def test_files_give_the_adapters_back(kind: str, adapter: LoRA | DoRA, tmp_path: Path) -> None:
    model, fresh = made(kind, torch.float32), made(kind, torch.float32)
    attach(model, adapter, 0)
    save_adapter(moved(model), tmp_path, base="org/base")
    data = read_json(tmp_path / "adapter_config.json")
    assert (data["r"], data["lora_alpha"], data["use_dora"], data["base_model_name_or_path"]) == (
        adapter.rank,
        5,
        isinstance(adapter, DoRA),
        "org/base",
    )
    load_adapter(fresh, tmp_path)
    assert torch.equal(logits(fresh), logits(model))
    assert {len(t.shape) for t in read_tensors(tmp_path).values()} <= {1, 2}  # stacks go expert by expert
    if kind == "published_moe":
        assert "base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_B.weight" in read_tensors(tmp_path)
    if kind == "dense":
        assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in read_tensors(tmp_path)


@pytest.mark.parametrize("adapter", CONFIGS, ids=lambda c: f"{c.kind}-{c.scaling}")
def test_files_applied_by_hand_to_the_model_of_transformers_give_our_logits(adapter: LoRA | DoRA, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = made(dtype=torch.float32)
    export_hf(model, None, tmp_path)
    attach(model, adapter, 0)
    save_adapter(moved(model), tmp_path / "adapter")
    data, given = read_json(tmp_path / "adapter" / "adapter_config.json"), read_tensors(tmp_path / "adapter")
    their: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).double()
    assert len(data["target_modules"]) == 14  # q, k, v, o, gate, up, down of two layers
    scale = data["lora_alpha"] / (data["r"] ** 0.5 if data["use_rslora"] else data["r"])
    with torch.no_grad():
        for name in data["target_modules"]:
            module = their.get_submodule(name)
            a, b = (given.pop(f"base_model.model.{name}.lora_{x}.weight").double() for x in "AB")
            moved_weight = module.weight + scale * b @ a
            if data["use_dora"]:
                magnitude = given.pop(f"base_model.model.{name}.lora_magnitude_vector").double()
                moved_weight = magnitude[:, None] * moved_weight / torch.linalg.norm(moved_weight, dim=1, keepdim=True)
            module.weight.copy_(moved_weight)
        theirs = torch.cat([their(part[None]).logits[0] for part in (IDS[:9], IDS[9:])])
    assert not given
    assert error(logits(model.double()), theirs) < 1e-5  # their norms and rotations run in float32
    assert dict(theirs_of(detach(model), family_for(model.config)))


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = made(dtype=torch.float32)
    with pytest.raises(UsageError, match="no folder of adapters"):
        load_adapter(model, tmp_path)
    with pytest.raises(UsageError, match="nothing to save"):
        save_adapter(model, tmp_path)
    attach(model, LoRA(rank=2), 0)
    save_adapter(model, tmp_path)
    data = read_json(tmp_path / "adapter_config.json")
    with pytest.raises(UsageError, match="already"):
        load_adapter(model, tmp_path)
    with pytest.raises(UsageError, match="do not fit"):
        load_adapter(made("mla", torch.float32), tmp_path)
    for change in ({"r": 3}, {"peft_type": "IA3"}, {"use_dora": True}, {"bias": "all"}, {"rank_pattern": {"q": 1}}):
        write_json(tmp_path / "adapter_config.json", {**data, **change})
        fresh = made(dtype=torch.float32)
        with pytest.raises(UsageError):
            load_adapter(fresh, tmp_path)
        assert adapted(fresh) is None
    table = made(dtype=torch.float32)
    attach(table, LoRA(targets=("embed",)), 0)
    with pytest.raises(UsageError, match="no matrix of its own"):
        save_adapter(table, tmp_path)
    assert "head.weight" in names(made()) and "embed.weight" not in names(made())
