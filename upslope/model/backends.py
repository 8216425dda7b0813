"""The attention core and its backends, and which of them is the fastest that may be used.

    o_t = Σ_s softmax_s(cap(a · q_t · k_s) + mask_ts) v_s,   cap(z) = c·tanh(z/c) or z; a sink adds exp(sink) to the softmax's denominator

eager: the formula as written, the reference; sdpa: torch's fused kernels; flex: a kernel compiled for the mask (CUDA), the same formula
on a CPU; varlen: flat rows of segments without padding (CUDA, 16 bit).
Sources: FlashAttention arXiv 2205.14135; FlexAttention arXiv 2412.05496.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from upslope.config import UsageError
from upslope.model.flow import Backend

Mask = Tensor | Literal["causal"] | None
Kernel = Literal["eager", "sdpa", "flex", "varlen"]
HALVES = (torch.bfloat16, torch.float16)
BLOCK = 64  # a window is computed in blocks of at least this many queries


class Needs(NamedTuple):
    """What a call asks of a backend.

    wider: value_dim ≠ head_dim. max_logit, lse: wanted as well. flat: the input is a flat row of new tokens.
    """

    softcap: bool = False
    sinks: bool = False
    window: bool = False
    wider: bool = False
    max_logit: bool = False
    lse: bool = False
    flat: bool = False
    grad: bool = False
    dtype: torch.dtype = torch.float32


class Choice(NamedTuple):
    """A backend, and why each faster one is not legal ("" where it is the fastest)."""

    backend: Kernel
    why: str


def legal(backend: Kernel, device: str, needs: Needs) -> str:
    """Why a backend cannot be used on a device type ("cpu", "cuda") for these needs; "" where it can."""
    if backend == "sdpa":
        return "has no soft-cap" if needs.softcap else "shows no logits" if needs.max_logit or needs.lse else ""
    if backend == "flex":
        if device == "cpu":
            return "has no gradients on a CPU" if needs.grad else "shows no logits on a CPU" if needs.max_logit else ""
        if device != "cuda":
            return "CPU and CUDA only"
        return "16 and 32 bit only on CUDA" if needs.dtype == torch.float64 else ""
    if backend == "varlen":
        if device != "cuda":
            return "CUDA only"
        reasons = {
            "needs a flat row of new tokens": not needs.flat,
            "16 bit only": needs.dtype not in HALVES,
            "has no soft-cap": needs.softcap,
            "has no sinks": needs.sinks,
            "needs value_dim = head_dim": needs.wider,
            "shows no logits": needs.max_logit or needs.lse,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")
    return ""


def _by_speed(device: str, needs: Needs) -> tuple[Kernel, ...]:
    """Fastest first. Uncompiled, flex is eager with more work; compiled, it skips the blocks that a window hides."""
    if device != "cuda":
        return "sdpa", "eager", "flex"
    return ("varlen", "flex", "sdpa", "eager") if needs.window else ("varlen", "sdpa", "flex", "eager")


@lru_cache
def choose(device: str, needs: Needs) -> Choice:
    """The fastest legal backend on a device type, and why the faster ones are not."""
    skipped: list[str] = []
    for backend in _by_speed(device, needs):
        reason = legal(backend, device, needs)
        if not reason:
            return Choice(backend, "; ".join(skipped))
        skipped.append(f"{backend} {reason}")
    raise AssertionError("eager is always legal")


def resolve(backend: Backend, device: str, needs: Needs) -> Choice:
    """`choose` for "auto", else the named backend: UsageError where that is not legal.

    Where only the logits stand in its way they are computed eagerly; where varlen meets a cache, `choose` decides.
    """
    if backend == "auto":
        return choose(device, needs)
    reason = legal(backend, device, needs)
    if not reason:
        return Choice(backend, "")
    if not legal(backend, device, needs._replace(max_logit=False, lse=False)):
        return Choice("eager", f"{backend} {reason}")
    if backend == "varlen" and not needs.flat:
        return choose(device, needs)
    raise UsageError(f"attention backend {backend!r} {reason} (device {device})\nway out: backend = 'auto'")


def core(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    backend: Backend | Choice = "auto",
    seen: list[Tensor] | None = None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    window: int | None = None,
    lse: list[Tensor] | None = None,
) -> Tensor:
    """Attention of q (S, H, N, D) over k (S, G, L, D), v (S, G, L, E), H a multiple of G → (S, H, N, E).

    mask: "causal" (N = L), which window narrows to that many tokens; additive, broadcastable to (S, H, N, L); None = every key may be seen.
    scale: None = 1/sqrt(D). sinks (H,). seen: takes the largest allowed logit per head (H,), as it enters the softmax, sinks left out.
    lse: takes the logarithm of the softmax's denominator (S, H, N).
    backend: a choice already made is taken as it is. UsageError where a named backend cannot do it.
    """
    if isinstance(mask, str) and window is not None and window >= q.shape[2]:
        window = None
    if not isinstance(backend, Choice):
        grad = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, sinks) if t is not None)
        wider, wants = q.shape[-1] != v.shape[-1], (seen is not None, lse is not None)
        needs = Needs(softcap is not None, sinks is not None, window is not None, wider, *wants, False, grad, q.dtype)
        backend = resolve(backend, q.device.type, needs)
    kernel = backend.backend
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if kernel == "flex":
        return _flex(q, k, v, mask, seen, scale, softcap, sinks, window, lse)
    if kernel == "sdpa":
        if isinstance(mask, str) and window is not None:
            return _banded(q, k, v, scale, sinks, window)
        return _fused(q, k, v, mask, scale, sinks)
    k, v = _repeated(q, k, v)
    scores = q @ k.mT * scale  # (S, H, N, L)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if isinstance(mask, str):
        mask = _band(q.shape[2], window, q)
    if mask is not None:
        scores = scores + mask
    if seen is not None:
        seen.append(scores.detach().amax((0, 2, 3)))
    if sinks is not None:
        scores = torch.cat((scores, sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)), -1)
    if lse is not None:
        lse.append(scores.logsumexp(-1))
    weights = torch.softmax(scores, -1)
    return (weights if sinks is None else weights[..., :-1]) @ v


def _repeated(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """A key-value head for each query head."""
    share = q.shape[1] // k.shape[1]
    return (k, v) if share == 1 else (k.repeat_interleave(share, 1), v.repeat_interleave(share, 1))


def _band(n: int, window: int | None, like: Tensor) -> Tensor:
    """The additive causal mask (N, N), within a window if there is one."""
    mask = like.new_full((n, n), -math.inf)
    return mask.triu(1) if window is None else mask.triu(1) + mask.tril(-window)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, sinks: Tensor | None) -> Tensor:
    """sdpa. A sink is one more key with value zero, which a constant channel of the queries turns into its logit.

    So the kernel stays the fused one, and the gradient is exact. The sink stands first; a causal mask wants a query in front of it then.
    Shared heads are left to the kernel where a fused one takes them: on a CPU, decoding is five times faster than with repeated keys.
    """
    causal, width = isinstance(mask, str), v.shape[-1]
    gqa = q.shape[1] != k.shape[1] and sinks is None and (q.is_cpu or (q.dtype in HALVES and not isinstance(mask, Tensor)))
    if not gqa:
        k, v = _repeated(q, k, v)
    if sinks is not None:
        key = F.pad((sinks / scale).to(k.dtype)[:, None, None], (k.shape[-1], 0)).expand(k.shape[0], -1, -1, -1)
        q = F.pad(F.pad(q, (0, 1), value=1.0), (0, 0, int(causal), 0))
        k, v = torch.cat((key, F.pad(k, (0, 1))), 2), F.pad(v, (0, 0, 1, 0))
        if isinstance(mask, Tensor):
            mask = F.pad(mask, (1, 0))
    if q.shape[-1] != v.shape[-1]:
        room = max(q.shape[-1], v.shape[-1])
        q, k, v = (F.pad(t, (0, room - t.shape[-1])) for t in (q, k, v))
    if isinstance(mask, Tensor):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype), scale=scale, enable_gqa=gqa)
    else:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=gqa)
    if causal and sinks is not None:
        out = out[:, :, 1:]
    return out if out.shape[-1] == width else out[..., :width]


def _banded(q: Tensor, k: Tensor, v: Tensor, scale: float, sinks: Tensor | None, window: int) -> Tensor:
    """Causal attention within a window by sdpa: each block of queries against its own and the preceding block of keys, linear in N."""
    rows, n = q.shape[0], q.shape[2]
    size = max(window, BLOCK)
    if n <= 2 * size:
        return _fused(q, k, v, _band(n, window, q), scale, sinks)
    blocks = -(-n // size)
    more = blocks * size - n

    def keys(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, size, more)).unflatten(2, (blocks + 1, size))
        return torch.cat((x[:, :, :-1], x[:, :, 1:]), 3).transpose(1, 2).flatten(0, 1)

    own = F.pad(q, (0, 0, 0, more)).unflatten(2, (blocks, size)).transpose(1, 2).flatten(0, 1)
    mask = _band(2 * size, window, q)[size:].repeat(blocks, 1, 1)
    mask[0, :, :size] = -math.inf
    out = _fused(own, keys(k), keys(v), mask[:, None].repeat(rows, 1, 1, 1), scale, sinks)
    return out.unflatten(0, (rows, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :n]


@lru_cache
def _flex_kernel(device: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    kernel: Any = torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention
    return kernel  # type: ignore[no-any-return]


@lru_cache
def _flex_mask(n: int, window: int | None, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return j <= i if window is None else (j <= i) & (j > i - window)

    return create_block_mask(sees, None, None, n, n, device=device)


def _flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    seen: list[Tensor] | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    window: int | None,
    lse: list[Tensor] | None,
) -> Tensor:
    """flex. A sink rescales the output: softmax with a sink = softmax without · sigmoid(lse - sink)."""
    from torch.nn.attention.flex_attention import AuxRequest

    added = mask.expand(*q.shape[:3], -1) if isinstance(mask, Tensor) else None  # (S, H, N, L)

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if softcap is not None:
            s = softcap * torch.tanh(s / softcap)
        return s if added is None else s + added[b, h, i, j]

    out, aux = _flex_kernel(q.device.type)(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        score_mod=None if softcap is None and added is None else score,
        block_mask=_flex_mask(q.shape[2], window, q.device) if isinstance(mask, str) else None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
        return_aux=AuxRequest(lse=True, max_scores=seen is not None),
    )
    if seen is not None:
        seen.append(aux.max_scores.detach().amax((0, 2)))
    total = aux.lse
    if sinks is not None:
        sink = sinks.to(total.dtype)[:, None]
        out = out * torch.sigmoid(total - sink)[..., None].to(out.dtype)
        total = torch.logaddexp(total, sink)
    if lse is not None:
        lse.append(total)
    return out  # type: ignore[no-any-return]


def varlen(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float, window: int | None = None) -> Tensor:
    """Causal attention within segments of a flat row: q (T, H, D), k, v (T, G, D), lengths (S,) on the CPU → (T, H, D). CUDA, 16 bit."""
    from torch.nn.attention.varlen import varlen_attn

    ends = F.pad(lengths.cumsum(0), (1, 0)).to(q.device, torch.int32)
    longest, back = int(lengths.max()), -1 if window is None else window - 1
    out: Any = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale, window_size=(back, 0), enable_gqa=q.shape[1] != k.shape[1])
    return out  # type: ignore[no-any-return]
