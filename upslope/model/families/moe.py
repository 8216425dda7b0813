"""Mixture-of-experts families with grouped-query attention: Qwen3-MoE, GLM-4.5, MiniMax-M2, Hunyuan (A13B), gpt-oss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from upslope.config import UsageError
from upslope.model.config import Layer
from upslope.model.families.dense import (
    BIASES,
    BODY,
    ENDS,
    FULL,
    GATED,
    HEAD_DIM,
    NO_WINDOW,
    PARTIAL_ROPE,
    PRE,
    PRE_NORMS,
    QK_NORM,
    QKVO,
    ROPE,
    gqa,
    local_global,
)
from upslope.model.families.dsl import TIE, Axis, Data, Family, Key, Piece, Rule, Tree, common, first, listed, ropes, rules, same, writes


def experts(score: str, *, shared: bool = False, bias: bool = False, **router: Any) -> Tree:
    """Skeleton of a MoE of gated experts. bias: a selection bias (loss-free balancing)."""
    return {
        "kind": "moe",
        "expert": {**GATED},
        "shared": {**GATED} if shared else None,
        "router": {"score": score, "select": {"kind": "topk"}, **router},
        "balance": [{"kind": "bias"}] if bias else [],
    }


PLAIN: dict[str, Any] = {"select": {"kind": "topk", "groups": 1, "keep": 1}}
HEADS = {"num_attention_heads": Key(("*.mixer.heads",)), "num_key_value_heads": Key(("*.mixer.kv_heads",))}
GATE_UP_DOWN = ("gate", "up", "down")


def expert_rules(theirs: str, names: Sequence[str] = ("gate_proj", "up_proj", "down_proj")) -> tuple[Rule, ...]:
    """One tensor per expert in their names, stacks in ours."""
    return rules("\n".join(f"ffn.experts.{a} {theirs}.experts.{{expert}}.{b}.weight" for a, b in zip(GATE_UP_DOWN, names)))


SHARED = rules("\n".join(f"ffn.shared.{n}.weight mlp.shared_experts.{n}_proj.weight" for n in GATE_UP_DOWN))
ROUTER = rules("ffn.router.weight mlp.gate.weight\nffn.select_bias mlp.gate.e_score_correction_bias")
MOE_KEYS = {"num_experts_per_tok": Key(("*.ffn.router.select.k",))}
V3_KEYS = MOE_KEYS | {
    "n_routed_experts": Key(("moe.ffn.experts",)),
    "moe_intermediate_size": Key(("moe.ffn.expert.hidden",)),
    "intermediate_size": Key(("dense.ffn.hidden",)),
    "routed_scaling_factor": Key(("moe.ffn.router.scale",), of=float),
    "n_group": Key(("moe.ffn.router.select.groups",), default=1),
    "topk_group": Key(("moe.ffn.router.select.keep",), default=1),
    "norm_topk_prob": Key(("moe.ffn.router.renorm",), default=True),
}


def _read_shared(d: Data, tree: Tree) -> None:
    for block in tree["blocks"].values():
        if isinstance(block["ffn"].get("shared"), dict):
            block["ffn"]["shared"]["hidden"] = (d.get("n_shared_experts") or 1) * d["moe_intermediate_size"]


@writes("n_shared_experts")
def _write_shared(tree: Tree) -> Tree:
    """As a number of experts' widths; a width that is no multiple does not survive the reading back."""
    found = {(b["ffn"]["shared"]["hidden"], b["ffn"]["expert"]["hidden"]) for b in tree["blocks"].values() if b["ffn"]["kind"] == "moe"}
    return {"n_shared_experts": next((shared // one for shared, one in found), 1)}


SHARED_WIDTH = Piece(_read_shared, _write_shared)
V3_EXPERTS = experts("sigmoid", shared=True, bias=True)
V3_FIRST = first("first_k_dense_replace", {"ffn": GATED}, {"ffn": V3_EXPERTS})


def _qwen_read(d: Data, n: int) -> Sequence[str]:
    every, plain = d.get("decoder_sparse_step", 1), set(d.get("mlp_only_layers") or ())
    return ["dense" if i in plain or (i + 1) % every else "moe" for i in range(n)]


_QWEN_AXIS = Axis(
    {"dense": ("dense", {"ffn": GATED}), "moe": ("moe", {"ffn": experts("softmax", **PLAIN)})},
    _qwen_read,
    lambda names: {"decoder_sparse_step": 1, "mlp_only_layers": [i for i, n in enumerate(names) if n == "dense"]},
)
QWEN3_MOE = Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    (same({"mixer": gqa(qk_norm={"over": "head", "place": "before"}), **PRE}), _QWEN_AXIS),
    common("*.mixer.qk_norm.eps")
    | HEADS
    | MOE_KEYS
    | {
        "num_experts": Key(("moe.ffn.experts",), also=("num_local_experts",)),
        "moe_intermediate_size": Key(("moe.ffn.expert.hidden",)),
        "intermediate_size": Key(("dense.ffn.hidden",)),
        "norm_topk_prob": Key(("moe.ffn.router.renorm",), default=False),
    },
    (*BODY, *QK_NORM, *ROUTER, *expert_rules("mlp")),
    (ROPE, HEAD_DIM, TIE, FULL),
    fixed={"attention_bias": (False, None), **NO_WINDOW},
    harmless=frozenset({"sliding_window"}),
)
_GLM_QK: Tree = {"over": "head", "place": "before"}


def _read_glm(d: Data, tree: Tree) -> None:
    for block in tree["blocks"].values():
        block["mixer"]["bias"] = "qkv" if d.get("attention_bias") else "none"
        block["mixer"]["qk_norm"] = {**_GLM_QK, "eps": float(d["rms_norm_eps"])} if d.get("use_qk_norm") else None


@writes("attention_bias", "use_qk_norm")
def _write_glm(tree: Tree) -> Tree:
    mixer = next(iter(tree["blocks"].values()))["mixer"]
    return {"attention_bias": mixer["bias"] == "qkv", "use_qk_norm": mixer["qk_norm"] is not None}


GLM4_MOE = Family(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    (same({"mixer": {"kind": "gqa", "kv": {"kind": "own"}}, **PRE}), V3_FIRST),
    common() | HEADS | V3_KEYS,
    (*BODY, *BIASES, *QK_NORM, *ROUTER, *SHARED, *expert_rules("mlp")),
    (ropes({"": "*"}, fraction=0.5), HEAD_DIM, SHARED_WIDTH, Piece(_read_glm, _write_glm), TIE),
)


def _read_rotary(d: Data, tree: Tree) -> None:
    for block in tree["blocks"].values() if d.get("rotary_dim") else ():
        block["mixer"]["position"]["fraction"] = d["rotary_dim"] / d["head_dim"]


@writes("rotary_dim")
def _write_rotary(tree: Tree) -> Tree:
    mixer = next(iter(tree["blocks"].values()))["mixer"]
    return {"rotary_dim": round(mixer["position"].get("fraction", 1.0) * mixer["head_dim"])}


_M2_EXPERTS = experts("sigmoid", bias=True, renorm=True, scale=1.0, **PLAIN)
_M2_MIXER = gqa(qk_norm={"over": "full", "place": "before"})
MINIMAX_M2 = Family(
    "minimax_m2",
    "MiniMaxM2ForCausalLM",
    (same({"mixer": _M2_MIXER, "ffn": _M2_EXPERTS, **PRE}),),
    common("*.mixer.qk_norm.eps")
    | HEADS
    | MOE_KEYS
    | {
        "head_dim": Key(("*.mixer.head_dim",)),
        "num_local_experts": Key(("*.ffn.experts",)),
        "intermediate_size": Key(("*.ffn.expert.hidden",)),
    },
    (
        *ENDS,
        *PRE_NORMS,
        *QKVO,
        *QK_NORM,
        *expert_rules("block_sparse_moe", ("w1", "w3", "w2")),
        *rules("ffn.router.weight block_sparse_moe.gate.weight\nffn.select_bias block_sparse_moe.e_score_correction_bias"),
    ),
    (PARTIAL_ROPE, Piece(_read_rotary, _write_rotary), TIE),
    fixed={
        "attn_window_size": (None,),
        "num_expert_group": (None, 1),
        "qk_norm_type": (None, "per_layer"),
        "routed_scaling_factor": (None, 1.0),
        "scoring_func": (None, "sigmoid"),
        "shared_intermediate_size": (None, 0),
        "sliding_window": (None,),
        "topk_group": (None, 1),
        "use_qk_norm": (None, True),
        "use_routing_bias": (None, True),
    },
    harmless=frozenset(
        (
            *("attn_type_list", "layer_types", "max_model_len", "mlp_intermediate_size", "mtp_transformer_layers", "num_mtp_modules"),
            *("layernorm_full_attention_beta", "layernorm_linear_attention_beta", "layernorm_mlp_beta", "shared_moe_mode"),
            *("swa_rope_theta", "use_grouped_topk", "use_mtp"),
        )
    ),
)


def _read_alpha(d: Data, tree: Tree) -> None:
    """Hunyuan's "dynamic" rope with an alpha is a larger base, whatever the length."""
    rope = dict(d.get("rope_parameters") or {}) | dict(d.get("rope_scaling") or {})
    if rope.get("rope_type", rope.get("type")) == "dynamic" and rope.get("alpha"):
        width = d.get("head_dim") or d["hidden_size"] // d["num_attention_heads"]
        base = float(rope.get("rope_theta") or d.get("rope_theta", 10_000.0)) * rope["alpha"] ** (width / (width - 2))
        d = {"rope_parameters": {"rope_type": "default", "rope_theta": base}}
    ROPE.read(d, tree)


def _uniform(value: int | Sequence[int]) -> int:
    """A number, or a list with the same number for every layer."""
    values = {value} if isinstance(value, int) else set(value)
    if len(values) > 1:
        raise UsageError(f"config.json: layers with different numbers ({', '.join(map(str, sorted(values)))}) are not supported")
    return values.pop()


_HUNYUAN_EXPERTS = experts("softmax", shared=True, renorm=True, scale=1.0, **PLAIN)
_HUNYUAN_MIXER = gqa(qk_norm={"over": "head", "place": "after"})
HUNYUAN = Family(
    "hunyuan_v1_moe",
    "HunYuanMoEV1ForCausalLM",
    (same({"mixer": _HUNYUAN_MIXER, "ffn": _HUNYUAN_EXPERTS, **PRE}),),
    common("*.mixer.qk_norm.eps")
    | HEADS
    | {
        "num_experts": Key(("*.ffn.experts",), of=_uniform),
        "moe_topk": Key(("*.ffn.router.select.k",), of=_uniform),
        "intermediate_size": Key(("*.ffn.expert.hidden", "*.ffn.shared.hidden")),
    },
    (
        *BODY,
        *expert_rules("mlp"),
        *rules("ffn.router.weight mlp.gate.wg.weight\nmixer.q_norm.weight self_attn.query_layernorm.weight"),
        *rules("mixer.k_norm.weight self_attn.key_layernorm.weight"),
        *rules("\n".join(f"ffn.shared.{n}.weight mlp.shared_mlp.{n}_proj.weight" for n in GATE_UP_DOWN)),
    ),
    (Piece(_read_alpha, ROPE.write), HEAD_DIM, TIE),
    fixed={"attention_bias": (False, None)},
)


def _interleave(parts: list[Tensor], layer: Layer | None) -> Tensor:
    """Gate and up of each hidden channel side by side; matrices (E, hidden, d) → (E, d, 2 hidden), biases (E, hidden) → (E, 2 hidden)."""
    whole = torch.stack(parts, 2).flatten(1, 2)
    return whole.mT.contiguous() if whole.ndim == 3 else whole


def _deinterleave(whole: Tensor, layer: Layer | None) -> list[Tensor]:
    rows = whole.mT if whole.ndim == 3 else whole
    return [rows[:, 0::2].contiguous(), rows[:, 1::2].contiguous()]


def _transposed(parts: list[Tensor], layer: Layer | None) -> Tensor:
    return parts[0].mT.contiguous()


_FUSED = tuple(
    Rule(
        tuple(f"blocks.{{layer}}.ffn.experts.{n}{end}" for n in ("gate", "up")),
        f"model.layers.{{layer}}.mlp.experts.gate_up_proj{end}",
        _interleave,
        _deinterleave,
    )
    for end in ("", "_bias")
)
_DOWN = Rule(
    ("blocks.{layer}.ffn.experts.down",), "model.layers.{layer}.mlp.experts.down_proj", _transposed, lambda t, c: [t.mT.contiguous()]
)
_OSS_EXPERTS = experts("softmax", renorm=True, scale=1.0, bias=False, **PLAIN)
_OSS_EXPERTS["expert"] = {"kind": "swiglu", "act": "swish1702", "bias": True}
_OSS_EXPERTS["router"]["bias"] = True
GPT_OSS = Family(
    "gpt_oss",
    "GptOssForCausalLM",
    (listed("layer_types", local_global(**gqa(bias="all", sinks=True))), same({"ffn": _OSS_EXPERTS, **PRE})),
    common()
    | HEADS
    | MOE_KEYS
    | {
        "head_dim": Key(("*.mixer.head_dim",)),
        "sliding_window": Key(("local.mixer.window",), default=128),
        "num_local_experts": Key(("*.ffn.experts",)),
        "intermediate_size": Key(("*.ffn.expert.hidden",)),
        "swiglu_limit": Key(("*.ffn.expert.limit",), default=7.0, of=float),
    },
    (
        *ENDS,
        *PRE_NORMS,
        *QKVO,
        *BIASES,
        *_FUSED,
        _DOWN,
        *rules("ffn.experts.down_bias mlp.experts.down_proj_bias\nffn.router.weight mlp.router.weight\nffn.router.bias mlp.router.bias"),
        *rules("mixer.sinks self_attn.sinks"),
    ),
    (ROPE, TIE),
    fixed={"attention_bias": (True,), "swiglu_alpha": (1.702, None)},
    harmless=frozenset({"initial_context_length", "experts_per_token"}),
)
FAMILIES: tuple[Family, ...] = (QWEN3_MOE, GLM4_MOE, MINIMAX_M2, HUNYUAN, GPT_OSS)
