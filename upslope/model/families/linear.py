"""Families with recurrent mixers: MiniMax-Text-01 and M1 (lightning attention), Nemotron-H and 3 (Mamba-2)."""

from __future__ import annotations

import torch
from torch import Tensor

from upslope.model.config import Layer
from upslope.model.families.dense import ENDS, PRE_NORMS, QKVO, gqa
from upslope.model.families.dsl import TIE, Data, Family, Key, Piece, Rule, Tree, common, listed, ropes, rules, same, writes
from upslope.model.families.moe import MOE_KEYS, PLAIN, expert_rules, experts


def _joined(parts: list[Tensor], layer: Layer | None) -> Tensor:
    """q, k, v of each head side by side."""
    assert layer is not None
    heads = layer.mixer.heads  # type: ignore[union-attr]
    return torch.stack([p.unflatten(0, (heads, -1)) for p in parts], 1).flatten(0, 2)


def _parted(whole: Tensor, layer: Layer | None) -> list[Tensor]:
    assert layer is not None
    heads = layer.mixer.heads  # type: ignore[union-attr]
    return [p.flatten(0, 1).contiguous() for p in whole.unflatten(0, (heads, 3, -1)).unbind(1)]


_HALVES = {"linear": "linear_attn", "softmax": "full_attn"}


def _read_factors(d: Data, tree: Tree) -> None:
    for name, block in tree["blocks"].items():
        which = _HALVES[name]
        mixer = (float(d.get(f"{which}_alpha_factor", 1)), float(d.get(f"{which}_beta_factor", 1)))
        ffn = (float(d.get("mlp_alpha_factor", 1)), float(d.get("mlp_beta_factor", 1)))
        block["residual"] = {"kind": "scaled", "mixer": mixer, "ffn": ffn}


@writes(*(f"{which}_{f}_factor" for which in (*_HALVES.values(), "mlp") for f in ("alpha", "beta")))
def _write_factors(tree: Tree) -> Tree:
    out: Tree = {}
    for name, block in tree["blocks"].items():
        for which, half in ((_HALVES[name], "mixer"), ("mlp", "ffn")):
            out[f"{which}_alpha_factor"], out[f"{which}_beta_factor"] = (int(f) if f == int(f) else f for f in block["residual"][half])
    return out


def _read_width(d: Data, tree: Tree) -> None:
    for block in tree["blocks"].values():
        block["mixer"]["head_dim"] = d.get("head_dim") or d["hidden_size"] // d["num_attention_heads"]


@writes("head_dim")
def _write_width(tree: Tree) -> Tree:
    return {"head_dim": next(iter(tree["blocks"].values()))["mixer"]["head_dim"]}


_QKV = tuple(f"blocks.{{layer}}.mixer.{n}.weight" for n in "qkv")
_M1: Tree = {"ffn": experts("softmax", renorm=True, scale=1.0, **PLAIN), "norm": {"kind": "pre"}, "residual": {"kind": "scaled"}}
MINIMAX = Family(
    "minimax",
    "MiniMaxForCausalLM",
    (
        listed(
            "layer_types",
            {
                "full_attention": ("softmax", {"mixer": gqa()}),
                "linear_attention": ("linear", {"mixer": {"kind": "lightning", "eps": 1e-6}}),
            },
        ),
        same(_M1),
    ),
    common()
    | MOE_KEYS
    | {
        "num_attention_heads": Key(("*.mixer.heads",)),
        "num_key_value_heads": Key(("softmax.mixer.kv_heads",)),
        "num_local_experts": Key(("*.ffn.experts",)),
        "intermediate_size": Key(("*.ffn.expert.hidden",)),
    },
    (
        *ENDS,
        *PRE_NORMS,
        *expert_rules("block_sparse_moe", ("w1", "w3", "w2")),
        *rules("ffn.router.weight block_sparse_moe.gate.weight\nmixer.norm.weight self_attn.norm.weight"),
        *rules("mixer.gate.weight self_attn.output_gate.weight"),
        *rules("mixer.o.weight self_attn.out_proj.weight", only="lightning"),
        Rule(_QKV, "model.layers.{layer}.self_attn.qkv_proj.weight", _joined, _parted, "lightning"),
        *QKVO,
    ),
    (ropes({"": "softmax"}, fraction=None), Piece(_read_width, _write_width), Piece(_read_factors, _write_factors), TIE),
    fixed={"sliding_window": (None,)},
    harmless=frozenset({"block_size"}),
    derived=(r"\.(slope_rate|query_decay|key_decay|diagonal_decay)$",),
)


def _taps(parts: list[Tensor], layer: Layer | None) -> Tensor:
    assert layer is not None
    return parts[0].view(-1, 1, layer.mixer.conv)  # type: ignore[union-attr]


_NOTHING: Tree = {"kind": "nothing"}
_RELU2: Tree = {"kind": "relu2"}
_NEMOTRON_MOE = experts("sigmoid", bias=True)
_NEMOTRON_MOE |= {"expert": _RELU2, "shared": _RELU2}
_MIXERS: dict[str, tuple[str, Tree]] = {
    "linear_attention": ("mamba", {"mixer": {"kind": "mamba2"}, "ffn": _NOTHING}),
    "full_attention": ("softmax", {"mixer": {**gqa(), "position": {"kind": "nope"}}, "ffn": _NOTHING}),
    "moe": ("moe", {"mixer": _NOTHING, "ffn": _NEMOTRON_MOE}),
    "mlp": ("dense", {"mixer": _NOTHING, "ffn": _RELU2}),
}
# fmt: off
_HARMLESS = frozenset((
    "chunk_size", "expand", "hidden_dropout", "mamba_ssm_cache_dtype", "moe_shared_expert_overlap", "mtp_layers_block_type",
    "n_shared_experts", "num_logits_to_keep", "rescale_prenorm_residual", "residual_in_fp32", "time_step_floor", "time_step_limit",
    "use_mamba_kernels", "hybrid_override_pattern", "num_hidden_layers",
))
# fmt: on
_OLD_NAMES = {"mamba": "linear_attention", "attention": "full_attention"}
_LISTED = listed("layers_block_type", _MIXERS)
NEMOTRON_H = Family(
    "nemotron_h",
    "NemotronHForCausalLM",
    (
        _LISTED._replace(read=lambda d, n: [_OLD_NAMES.get(name, name) for name in _LISTED.read(d, n)]),
        same({"norm": {"kind": "pre"}, "residual": {"kind": "add"}}),
    ),
    common("mamba.mixer.eps", eps_key="layer_norm_epsilon")
    | MOE_KEYS
    | {
        "num_attention_heads": Key(("softmax.mixer.heads",), default=32),
        "num_key_value_heads": Key(("softmax.mixer.kv_heads",), default=8),
        "head_dim": Key(("softmax.mixer.head_dim",), default=128),
        "intermediate_size": Key(("dense.ffn.hidden",), default=1),
        "mamba_num_heads": Key(("mamba.mixer.heads",), default=1),
        "mamba_head_dim": Key(("mamba.mixer.head_dim",), default=1),
        "ssm_state_size": Key(("mamba.mixer.state",), default=1),
        "n_groups": Key(("mamba.mixer.groups",), default=1),
        "conv_kernel": Key(("mamba.mixer.conv",), default=4),
        "time_step_min": Key(("mamba.mixer.dt_min",), default=1e-3),
        "time_step_max": Key(("mamba.mixer.dt_max",), default=0.1),
        "n_routed_experts": Key(("moe.ffn.experts",), default=1),
        "num_experts_per_tok": Key(("moe.ffn.router.select.k",), default=1),
        "moe_intermediate_size": Key(("moe.ffn.expert.hidden",), default=1),
        "moe_shared_expert_intermediate_size": Key(("moe.ffn.shared.hidden",), default=1),
        "moe_latent_size": Key(("moe.ffn.latent",), default=0, of=lambda n: n or None),
        "routed_scaling_factor": Key(("moe.ffn.router.scale",), default=1.0, of=float),
        "n_group": Key(("moe.ffn.router.select.groups",), default=1),
        "topk_group": Key(("moe.ffn.router.select.keep",), default=1),
        "norm_topk_prob": Key(("moe.ffn.router.renorm",), default=True),
    },
    (
        Rule(("embed.weight",), "backbone.embeddings.weight"),
        Rule(("final_norm.weight",), "backbone.norm_f.weight"),
        Rule(("head.weight",), "lm_head.weight"),
        *rules("mixer_half.before.weight norm.weight\nffn_half.before.weight norm.weight", theirs="backbone.layers.{layer}."),
        *rules(
            """
            mixer.A_log mixer.A_log
            mixer.D mixer.D
            mixer.dt_bias mixer.dt_bias
            mixer.conv.bias mixer.conv1d.bias
            mixer.in_proj.weight mixer.in_proj.weight
            mixer.norm.weight mixer.norm.weight
            mixer.q.weight mixer.q_proj.weight
            mixer.k.weight mixer.k_proj.weight
            mixer.v.weight mixer.v_proj.weight
            ffn.up.weight mixer.up_proj.weight
            ffn.down.weight mixer.down_proj.weight
            ffn.router.weight mixer.gate.weight
            ffn.select_bias mixer.gate.e_score_correction_bias
            ffn.experts.up mixer.experts.{expert}.up_proj.weight
            ffn.experts.down mixer.experts.{expert}.down_proj.weight
            ffn.shared.up.weight mixer.shared_experts.up_proj.weight
            ffn.shared.down.weight mixer.shared_experts.down_proj.weight
            ffn.latent_down.weight mixer.fc1_latent_proj.weight
            ffn.latent_up.weight mixer.fc2_latent_proj.weight
            """,
            theirs="backbone.layers.{layer}.",
        ),
        Rule(("blocks.{layer}.mixer.conv.weight",), "backbone.layers.{layer}.mixer.conv1d.weight", _taps, lambda t, c: [t.flatten()]),
        *rules("mixer.o.weight mixer.out_proj.weight", theirs="backbone.layers.{layer}.", only="mamba2"),
        *rules("mixer.o.weight mixer.o_proj.weight", theirs="backbone.layers.{layer}.", only="gqa"),
    ),
    (TIE,),
    fixed={
        "mlp_hidden_act": ("relu2",),
        "mamba_hidden_act": ("silu", None),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "tie_word_embeddings": (False, None),
        "use_bias": (False, None),
        "mamba_proj_bias": (False, None),
        "use_conv_bias": (True, None),
        "sliding_window": (None,),
    },
    harmless=_HARMLESS,
    layers_key="layers_block_type",
)
FAMILIES: tuple[Family, ...] = (MINIMAX, NEMOTRON_H)
