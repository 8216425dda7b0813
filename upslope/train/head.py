"""From hidden states to what losses read, in chunks: log-prob, entropy, normaliser, top-k, scalar scores.

Column t reads the hidden state of token t-1. Only columns that speak go through the head; the others are zero. Where
there is more than one chunk, its logits are recomputed in the backward pass, so at most `chunk` rows of logits exist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from upslope.config import UsageError
from upslope.train.batch import Batch
from upslope.train.protocol import Out, Wants

KNOWN: Wants = frozenset({"logprob", "entropy", "lse", "top", "value", "score"})


class TokenStats(torch.autograd.Function):
    """(log p(target), entropy, lse) of rows of logits, with one pass backward instead of autograd's many.

        d logprob / dz = 1[target] - p;   d lse / dz = p;   d entropy / dz = -p (log p + entropy)

    logits: (N, V) any float dtype; target: (N,) int64. Results: (N,) float32 (float64 for float64 logits).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
        logp = torch.log_softmax(logits, -1, dtype=_wide_dtype(logits))
        logprob = logp.gather(-1, target[:, None])[:, 0]
        lse = logits.gather(-1, target[:, None])[:, 0].to(logp.dtype) - logprob
        if entropy:
            h = -(logp.exp() * logp).sum(-1)
        else:
            h = torch.zeros_like(lse)
        ctx.save_for_backward(logits, target, lse, h)
        ctx.entropy = entropy
        return logprob, h, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, target, lse, h = ctx.saved_tensors
        g_logprob, g_entropy, g_lse = grads
        if ctx.entropy:
            logp = torch.log_softmax(logits, -1, dtype=lse.dtype)
            factor = (g_lse - g_logprob - g_entropy * h)[:, None] - g_entropy[:, None] * logp
            dz = logp.exp_().mul_(factor)
        else:
            dz = torch.softmax(logits, -1, dtype=lse.dtype).mul_((g_lse - g_logprob)[:, None])
        dz.scatter_add_(-1, target[:, None], g_logprob[:, None])
        return dz.to(logits.dtype), None, None


def read(
    hidden: Tensor, batch: Batch, wants: Wants, logits: Callable[[Tensor], Tensor], scalar: nn.Module | None = None, chunk: int = 4096
) -> Out:
    """`Out` of a batch from its hidden states.

    hidden: (T, d). logits: rows of hidden states (n, d) → (n, V). scalar: (n, d) → (n,), for value and score. chunk:
    most rows of logits at a time. UsageError for an unknown want, or a score without a scalar head.
    """
    if unknown := wants - KNOWN:
        raise UsageError(f"wants {sorted(unknown)[0]!r}; an Out has: {', '.join(sorted(KNOWN))}")
    if wants & {"value", "score"} and scalar is None:
        raise UsageError("the loss reads a scalar, and the trainer has no scalar head\nway out: Trainer(..., scalar=ScalarHead(d_model))")
    values: dict[str, Tensor] = {}
    if wants & {"logprob", "entropy", "lse", "top"}:
        values |= _columns(hidden, batch, wants, logits, chunk)
    if scalar is not None and "score" in wants:
        values["score"] = scalar(hidden[batch.lengths().cumsum(0) - 1])
    if scalar is not None and "value" in wants:
        scores = scalar(hidden)
        values["value"] = torch.cat([torch.zeros_like(scores[:1]), scores[:-1]]) * (batch.pos > 0)
    return Out(**values)


def _columns(hidden: Tensor, batch: Batch, wants: Wants, logits: Callable[[Tensor], Tensor], chunk: int) -> dict[str, Tensor]:
    """The wanted (T, …) columns, zero where a column does not speak."""
    if "top" in wants and batch.distil is None:
        raise UsageError("the loss reads log-probs of a teacher's tokens, and the batch has no `distil` columns")
    at = batch.speaking().nonzero()[:, 0]
    kept = None if batch.replay is None else batch.replay.kept

    def rows(h: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        z = logits(h)
        if kept is not None:
            z = restrict(z, kept[index])
        logprob, entropy, lse = TokenStats.apply(z, batch.ids[index], "entropy" in wants)
        if batch.distil is None or "top" not in wants:
            return logprob, entropy, lse
        logp = torch.log_softmax(_wide(z), -1)
        ids = batch.distil.ids[index]
        return logprob, entropy, lse, logp if ids.stride(0) == 0 and ids.shape == z.shape else logp.gather(-1, ids)

    parts = in_chunks(rows, chunk, hidden.index_select(0, at - 1), at)
    found = {}
    for k, name in enumerate(("logprob", "entropy", "lse", "top")):
        if name in wants:
            found[name] = parts[k].new_zeros(len(batch), *parts[k].shape[1:]).index_copy(0, at, parts[k])
    return found


def target_logprobs(hidden: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor], chunk: int) -> Tensor:
    """Log-probs (n,) of tokens (n,) that hidden states (n, d) predict, at most `chunk` rows of logits at a time."""
    return in_chunks(lambda h, target: TokenStats.apply(logits(h), target, False), chunk, hidden, targets)[0]


def in_chunks(f: Callable[..., tuple[Tensor, ...]], chunk: int, *columns: Tensor) -> tuple[Tensor, ...]:
    """f of row-wise columns, at most `chunk` rows at a time; with several chunks each is computed again in the backward pass."""
    if len(columns[0]) <= chunk:
        return f(*columns)
    chunks = zip(*(c.split(chunk) for c in columns))
    parts = [checkpoint(f, *rows, use_reentrant=False) if torch.is_grad_enabled() else f(*rows) for rows in chunks]
    return tuple(torch.cat(p) for p in zip(*parts))


def restrict(logits: Tensor, kept: Tensor) -> Tensor:
    """Logits with everything outside the kept set put out of reach, so that softmax renormalises over it.

    logits: (N, V). kept: (N, K) token ids padded with -1; a row of -1 only keeps everything.
    """
    inside = torch.zeros(logits.shape[0], logits.shape[1] + 1, dtype=torch.bool, device=logits.device)
    inside.scatter_(1, torch.where(kept >= 0, kept, logits.shape[1]), True)
    allowed = inside[:, :-1] | (kept < 0).all(1, keepdim=True)
    return logits.masked_fill(~allowed, torch.finfo(logits.dtype).min / 2)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _wide_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
