"""What llama.cpp computes from a GGUF file, written down from its graphs in plain torch: it knows nothing but the file.

One sequence without a cache. Rules that the file does not carry (which layers are local, which channels rotate together, where gains and
scales are fixed) are those of llama.cpp's model files; none of our modules is used.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PERIOD = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2}  # the last layer of each period is global
NEIGHBOURS = ("llama", "deepseek2")  # rotate channels 2i and 2i + 1; the others i and i + n/2


class File:
    """Tensors and metadata of one file."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.fields = {name: f.contents() for name, f in reader.fields.items()}
        self.arch: str = self.fields["general.architecture"]
        self.tensors = {t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)) for t in reader.tensors}

    def key(self, name: str, default: Any = None) -> Any:
        """A value of the architecture's metadata."""
        return self.fields.get(f"{self.arch}.{name}", default)

    def norm(self, x: Tensor, name: str) -> Tensor:
        """ggml_rms_norm times the gain."""
        return x * (x.square().mean(-1, keepdim=True) + self.key("attention.layer_norm_rms_epsilon")).rsqrt() * self.tensors[name]

    def linear(self, x: Tensor, name: str) -> Tensor:
        """A product, with the bias if there is one."""
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))


def local(f: File, layer: int) -> bool:
    """Whether a layer sees the window only."""
    period = PERIOD.get(f.arch)
    return period is not None and layer % period < period - 1


def rope(f: File, x: Tensor, layer: int) -> Tensor:
    """ggml_rope_ext of x (T, heads, D) at positions 0 ... T - 1."""
    n, base, kind = f.key("rope.dimension_count"), f.key("rope.freq_base"), f.key("rope.scaling.type")
    factor = f.key("rope.scaling.factor", 1.0)
    if f.arch == "gemma3" and local(f, layer):
        base, factor = 10_000.0, 1.0
    i = torch.arange(n // 2)
    theta = torch.arange(x.shape[0])[:, None] * base ** (-2 * i / n) / f.tensors.get("rope_freqs.weight", torch.ones(n // 2))
    angle, magnitude = theta / factor, 1.0
    if kind == "yarn":
        context = f.key("rope.scaling.original_context_length")
        low, high = (n * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (32.0, 1.0))
        low, high = max(0, math.floor(low)), min(n - 1, math.ceil(high))
        ramp = 1 - ((i - low) / max(0.001, high - low)).clamp(0, 1)
        angle = angle * (1 - ramp) + theta * ramp
        magnitude = 1.0 if f.key("rope.scaling.yarn_log_multiplier") else 1 + 0.1 * math.log(factor)
    cos, sin = (angle.cos() * magnitude)[:, None], (angle.sin() * magnitude)[:, None]
    turning, rest = x[..., :n], x[..., n:]
    a, b = (turning[..., 0::2], turning[..., 1::2]) if f.arch in NEIGHBOURS else turning.chunk(2, -1)
    pair = a * cos - b * sin, a * sin + b * cos
    turned = torch.stack(pair, -1).flatten(-2) if f.arch in NEIGHBOURS else torch.cat(pair, -1)
    return torch.cat((turned, rest), -1)


def attend(f: File, q: Tensor, k: Tensor, v: Tensor, scale: float, layer: int) -> Tensor:
    """q (T, H, D), k (T, G, D), v (T, G, E) → (T, H, E)."""
    heads, length = q.shape[1], q.shape[0]
    k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    scores = torch.einsum("thd,shd->hts", q, k) * scale
    if (cap := f.key("attn_logit_softcapping")) is not None:
        scores = cap * torch.tanh(scores / cap)
    i, j = torch.arange(length)[:, None], torch.arange(length)
    hidden = (j > i) | ((i - j >= f.key("attention.sliding_window", length)) if local(f, layer) else False)
    scores = scores.masked_fill(hidden, -math.inf)
    if (sinks := f.tensors.get(f"blk.{layer}.attn_sinks.weight")) is not None:
        scores = torch.cat((scores, sinks[:, None, None].expand(-1, length, 1)), -1)
    return torch.einsum("hts,she->the", scores.softmax(-1)[..., :length], v)


def attention(f: File, x: Tensor, layer: int) -> Tensor:
    """Grouped-query attention."""
    blk, dim, rows = f"blk.{layer}.", f.key("attention.key_length"), len(x)
    parts = []
    for name in "qk":
        y, gain = f.linear(x, f"{blk}attn_{name}"), f"{blk}attn_{name}_norm.weight"
        if gain in f.tensors:
            whole = len(f.tensors[gain]) != dim
            y = f.norm(y if whole else y.view(rows, -1, dim), gain)
        parts.append(rope(f, y.view(rows, -1, dim), layer))
    v = f.linear(x, f"{blk}attn_v").view(rows, -1, f.key("attention.value_length"))
    return f.linear(attend(f, parts[0], parts[1], v, dim**-0.5, layer).flatten(1), f"{blk}attn_output")


def latent_attention(f: File, x: Tensor, layer: int) -> Tensor:
    """MLA with absorbed queries: attention over the latents, one key-value head for all."""
    blk, heads, n = f"blk.{layer}.", f.key("attention.head_count"), f.key("rope.dimension_count")
    width = f.key("attention.key_length_mla")
    q = f.linear(f.norm(f.linear(x, f"{blk}attn_q_a"), f"{blk}attn_q_a_norm.weight"), f"{blk}attn_q_b").view(len(x), heads, width)
    plain, turning = q.split((width - n, n), -1)
    latent, key = f.linear(x, f"{blk}attn_kv_a_mqa").split((f.key("attention.kv_lora_rank"), n), -1)
    latent = f.norm(latent, f"{blk}attn_kv_a_norm.weight")[:, None]
    absorbed = torch.einsum("thn,hln->thl", plain, f.tensors[f"{blk}attn_k_b.weight"])
    q = torch.cat((absorbed, rope(f, turning, layer)), -1)
    k = torch.cat((latent, rope(f, key[:, None], layer)), -1)
    assert k.shape[-1] == f.key("attention.key_length") and latent.shape[-1] == f.key("attention.value_length")
    scale = width**-0.5 * (1 + f.key("rope.scaling.yarn_log_multiplier", 0.0) * math.log(f.key("rope.scaling.factor", 1.0))) ** 2
    mixed = torch.einsum("thl,hvl->thv", attend(f, q, k, latent, scale, layer), f.tensors[f"{blk}attn_v_b.weight"])
    assert mixed.shape[-1] == f.key("attention.value_length_mla")
    return f.linear(mixed.flatten(1), f"{blk}attn_output")


def ffn(f: File, x: Tensor, blk: str, end: str = "") -> Tensor:
    """A gated FFN; end "_shexp" for the shared expert."""
    gate, up = f.linear(x, f"{blk}ffn_gate{end}"), f.linear(x, f"{blk}ffn_up{end}")
    act = F.gelu(gate, approximate="tanh") if f.arch.startswith("gemma") else F.silu(gate)
    return f.linear(act * up, f"{blk}ffn_down{end}")


def mixture(f: File, x: Tensor, blk: str) -> Tensor:
    """build_moe_ffn: which experts, with which weights."""
    logits, k = f.linear(x, f"{blk}ffn_gate_inp"), f.key("expert_used_count")
    raw = f.arch == "gpt-oss"  # softmax of the chosen logits
    probs = logits if raw else torch.sigmoid(logits) if f.key("expert_gating_func") == 2 else logits.softmax(-1)
    choice = probs + f.tensors.get(f"{blk}exp_probs_b.bias", torch.zeros(()))
    if (groups := f.key("expert_group_count", 1)) > 1:
        grouped = choice.view(len(x), groups, -1)
        kept = grouped.topk(2, -1).values.sum(-1).topk(f.key("expert_group_used_count"), -1).indices
        closed = torch.ones(len(x), groups, dtype=torch.bool).scatter(1, kept, False)
        choice = grouped.masked_fill(closed[..., None], -math.inf).flatten(1)
    chosen = choice.topk(k, -1).indices
    weights = probs.gather(1, chosen)
    if raw:
        weights = weights.softmax(-1)
    elif f.key("expert_weights_norm", True):
        weights = weights / weights.sum(-1, keepdim=True)
    weights = weights * f.key("expert_weights_scale", 1.0)

    def of(name: str, expert: int, y: Tensor) -> Tensor:
        bias = f.tensors.get(f"{blk}ffn_{name}_exps.bias")
        return F.linear(y, f.tensors[f"{blk}ffn_{name}_exps.weight"][expert], None if bias is None else bias[expert])

    rows = []
    for token, experts, shares in zip(x, chosen.tolist(), weights):
        out = torch.zeros_like(token)
        for expert, share in zip(experts, shares):
            gate, up = of("gate", expert, token), of("up", expert, token)
            if raw:  # swiglu_oai: alpha 1.702, limit 7
                gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0) + 1
            out = out + share * of("down", expert, gate * torch.sigmoid((1.702 if raw else 1.0) * gate) * up)
        rows.append(out)
    return torch.stack(rows) + (ffn(f, x, blk, "_shexp") if f.key("expert_shared_count") else 0.0)


def forward(f: File, ids: Tensor) -> Tensor:
    """Logits (T, V) of ids (T,)."""
    x = f.tensors["token_embd.weight"][ids]
    if f.arch.startswith("gemma"):
        x = x * math.sqrt(f.key("embedding_length"))
    for layer in range(f.key("block_count")):
        blk = f"blk.{layer}."
        second = "post_attention_norm" if f.arch == "gpt-oss" else "ffn_norm"
        h = x if f.arch == "olmo2" else f.norm(x, f"{blk}attn_norm.weight")
        h = latent_attention(f, h, layer) if f.arch == "deepseek2" else attention(f, h, layer)
        if f.arch in ("gemma2", "gemma3", "olmo2"):
            h = f.norm(h, f"{blk}post_attention_norm.weight")
        x = x + h
        h = x if f.arch == "olmo2" else f.norm(x, f"{blk}{second}.weight")
        h = mixture(f, h, blk) if f.key("expert_count") and layer >= f.key("leading_dense_block_count", 0) else ffn(f, h, blk)
        if f.arch in ("gemma2", "gemma3", "olmo2"):
            h = f.norm(h, f"{blk}post_ffw_norm.weight")
        x = x + h
    out = f.norm(x, "output_norm.weight") @ f.tensors.get("output.weight", f.tensors["token_embd.weight"]).T
    cap = f.key("final_logit_softcapping")
    return out if cap is None else cap * torch.tanh(out / cap)
