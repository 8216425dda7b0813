"""DeepSeek-V4: compressed attention, hyper-connections, experts that the first layers find by token id.

Names and entries are those of transformers' folders. Sources: the released modelling code; arXiv 2606.19348.
"""

from __future__ import annotations

from torch import Tensor

from upslope.model.config import Compressed, Layer
from upslope.model.families.dsl import TIE, Data, Family, Key, Piece, Rule, Tree, common, listed, ropes, rules, writes

RATES = {"csa": ("compressed_sparse_attention", 4), "hca": ("heavily_compressed_attention", 128)}
POSITION = {"kind": "rope", "layout": "interleaved", "part": "trailing"}


def _mixer(history: Tree | None) -> Tree:
    return {
        "mixer": {"kind": "compressed", "history": history, "position": POSITION},
        "norm": {"kind": "pre"},
        "residual": {"kind": "hyper"},
    }


def _experts(select: str, balance: list[Tree]) -> Tree:
    shape = {"kind": "swiglu", "act": "silu", "bias": False}
    router = {"select": {"kind": select}, "renorm": True, "bias": False}
    return {"ffn": {"kind": "moe", "expert": shape, "shared": shape, "router": router, "balance": balance, "latent": None}}


def _read_rates(data: Data, tree: Tree) -> None:
    for block in tree["blocks"].values():
        history = block["mixer"]["history"]
        if history is not None:
            theirs, rate = RATES[history["kind"]]
            history["rate"] = (data.get("compress_rates") or {}).get(theirs, rate)


@writes("compress_rates")
def _write_rates(tree: Tree) -> Tree:
    found = {b["mixer"]["history"]["kind"]: b["mixer"]["history"]["rate"] for b in tree["blocks"].values() if b["mixer"]["history"]}
    return {"compress_rates": {theirs: found.get(kind, rate) for kind, (theirs, rate) in RATES.items()}}


_ROPES = ropes({"main": "local", "compress": "csa|hca"}, layout="interleaved", part="trailing", fraction=0.125)


def _read_ropes(data: Data, tree: Tree) -> None:
    """The entries are nested, or flat: then they stand for the compressed layers alone, whose base has an entry of its own.

    A nested `truncate` is read by nobody: the released code looks for it one level up.
    """
    flat = {**(data.get("rope_parameters") or {}), **(data.get("rope_scaling") or {})}
    if not isinstance(flat.get("main"), dict) or not isinstance(flat.get("compress"), dict):
        whole = {"attention_factor": 1.0, **flat, "rope_theta": data.get("compress_rope_theta", 160_000.0)}
        flat = {"main": {"rope_theta": data.get("rope_theta", 10_000.0)}, "compress": whole}
    both = {k: {**flat[k], "truncate": True} for k in ("main", "compress")}
    _ROPES.read({**data, "rope_parameters": both, "rope_scaling": None}, tree)


@writes("rope_parameters")
def _write_ropes(tree: Tree) -> Tree:
    """Both, though a model may have layers of one kind only: half of a nesting is read as flat."""
    found = _ROPES.write(tree)["rope_parameters"]
    plain = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.125}
    return {"rope_parameters": {"main": found.get("main", plain), "compress": found.get("compress", plain)}}


def _grouped(weight: Tensor, layer: Layer | None) -> list[Tensor]:
    assert layer is not None and isinstance(layer.mixer, Compressed)
    return [weight.unflatten(0, (layer.mixer.groups, -1))]


_TENSORS = """
    mixer.q_a.weight                        attn.wq_a.weight
    mixer.q_a_norm.weight                   attn.q_norm.weight
    mixer.q_b.weight                        attn.wq_b.weight
    mixer.kv.weight                         attn.wkv.weight
    mixer.kv_norm.weight                    attn.norm.weight
    mixer.sinks                             attn.attn_sink
    mixer.o.weight                          attn.wo_b.weight
    mixer.compressor.kv.weight              attn.compressor.wkv.weight
    mixer.compressor.gate.weight            attn.compressor.wgate.weight
    mixer.compressor.kv_norm.weight         attn.compressor.norm.weight
    mixer.compressor.position_bias          attn.compressor.ape
    mixer.indexer.compressor.kv.weight      attn.indexer.compressor.wkv.weight
    mixer.indexer.compressor.gate.weight    attn.indexer.compressor.wgate.weight
    mixer.indexer.compressor.kv_norm.weight attn.indexer.compressor.norm.weight
    mixer.indexer.compressor.position_bias  attn.indexer.compressor.ape
    mixer.indexer.q.weight                  attn.indexer.wq_b.weight
    mixer.indexer.weights.weight            attn.indexer.weights_proj.weight
    mixer_half.before.weight                attn_norm.weight
    mixer_half.streams.weight               hc_attn_fn
    mixer_half.streams.base                 hc_attn_base
    mixer_half.streams.scale                hc_attn_scale
    ffn_half.before.weight                  ffn_norm.weight
    ffn_half.streams.weight                 hc_ffn_fn
    ffn_half.streams.base                   hc_ffn_base
    ffn_half.streams.scale                  hc_ffn_scale
    ffn.router.weight                       ffn.gate.weight
    ffn.select_bias                         ffn.gate.bias
    ffn.table                               ffn.gate.tid2eid
    ffn.experts.gate                        ffn.experts.{expert}.w1.weight
    ffn.experts.up                          ffn.experts.{expert}.w3.weight
    ffn.experts.down                        ffn.experts.{expert}.w2.weight
    ffn.shared.gate.weight                  ffn.shared_experts.w1.weight
    ffn.shared.up.weight                    ffn.shared_experts.w3.weight
    ffn.shared.down.weight                  ffn.shared_experts.w2.weight
"""
DEEPSEEK_V4 = Family(
    "deepseek_v4",
    "DeepseekV4ForCausalLM",
    (
        listed(
            "layer_types",
            {
                "sliding_attention": ("local", _mixer(None)),
                **{theirs: (kind, _mixer({"kind": kind})) for kind, (theirs, _) in RATES.items()},
            },
        ),
        listed("mlp_layer_types", {"hash_moe": ("hash", _experts("hash", [])), "moe": ("moe", _experts("topk", [{"kind": "bias"}]))}),
    ),
    common("*.mixer.eps", "*.residual.norm_eps")
    | {
        "num_attention_heads": Key(("*.mixer.heads",)),
        "head_dim": Key(("*.mixer.head_dim",)),
        "q_lora_rank": Key(("*.mixer.q_latent",)),
        "sliding_window": Key(("*.mixer.window",)),
        "o_groups": Key(("*.mixer.groups",)),
        "o_lora_rank": Key(("*.mixer.group_dim",)),
        "index_n_heads": Key(("csa.mixer.history.index_heads",), 64),
        "index_head_dim": Key(("csa.mixer.history.index_dim",), 128),
        "index_topk": Key(("csa.mixer.history.top_k",), 512),
        "hc_mult": Key(("*.residual.streams",)),
        "hc_sinkhorn_iters": Key(("*.residual.iterations",)),
        "hc_eps": Key(("*.residual.eps",), of=float),
        "n_routed_experts": Key(("*.ffn.experts",)),
        "num_experts_per_tok": Key(("*.ffn.router.select.k",)),
        "moe_intermediate_size": Key(("*.ffn.expert.hidden", "*.ffn.shared.hidden")),
        "swiglu_limit": Key(("*.ffn.expert.limit", "*.ffn.shared.limit"), of=float),
        "scoring_func": Key(("*.ffn.router.score",), only=("sqrtsoftplus", "sigmoid")),
        "routed_scaling_factor": Key(("*.ffn.router.scale",), of=float),
    },
    (
        Rule(("embed.weight",), "model.embed_tokens.weight"),
        Rule(("final_norm.weight",), "model.norm.weight"),
        Rule(("head.weight",), "head.weight"),
        *rules("weight fn\nbase base\nscale scale", "collapse.", "model.hc_head.hc_"),
        *rules("weight fn\nbase base\nscale scale", "mtp.layers.{layer}.collapse.", "model.layers.{layer}.hc_head.hc_"),
        Rule(("blocks.{layer}.mixer.o_a",), "model.layers.{layer}.attn.wo_a.weight", lambda t, c: t[0].flatten(0, 1), _grouped),
        *rules(_TENSORS),
    ),
    (Piece(_read_ropes, _write_ropes), Piece(_read_rates, _write_rates), TIE),
    fixed={
        "num_key_value_heads": (1,),
        "n_shared_experts": (1,),
        "norm_topk_prob": (True,),
        "attention_bias": (False,),
        "mlp_bias": (False,),
    },
    harmless=frozenset({"qk_rope_head_dim", "compress_rope_theta"}),
    beyond=lambda d: {
        **d,
        "num_hidden_layers": d["num_hidden_layers"] + 1,
        "layer_types": [*d["layer_types"], "sliding_attention"],
        "mlp_layer_types": [*d["mlp_layer_types"], "moe"],
    },
)
FAMILIES: tuple[Family, ...] = (DEEPSEEK_V4,)
