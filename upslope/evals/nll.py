"""How many nats a model needs for given texts: token by token, in windows, packed without padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

    from upslope.model.transformer import Transformer
    from upslope.precision.config import Numerics

LOGIT_ROWS = 2048  # positions whose logits exist at once


class Window(NamedTuple):
    """A stretch of a document: the input ids, and which of its positions are scored. doc: index; start: of the first scored token."""

    doc: int
    ids: np.ndarray
    scored: int
    start: int


def windows(docs: Sequence[np.ndarray], context: int, overlap: int) -> Iterator[Window]:
    """Cuts documents into windows of at most `context` tokens that overlap, so that each token but the first is scored once.

    Every token after the first window sees at least `overlap` tokens before it. ids[-scored:] are the scored tokens, each
    predicted from the ids before it in the window. ValueError for an overlap outside [1, context).
    """
    if not 1 <= overlap < context:
        raise ValueError(f"overlap = {overlap}: must lie in [1, {context}), the context")
    for d, doc in enumerate(docs):
        line = np.asarray(doc, dtype=np.int64)
        done = 1  # tokens that are scored or given
        while done < len(line):
            begin = 0 if done == 1 else done - overlap
            end = min(len(line), begin + context)
            yield Window(d, line[begin:end], end - done, done)
            done = end


def document_nats(
    model: Transformer,
    docs: Sequence[np.ndarray],
    *,
    context: int,
    overlap: int | None = None,
    numerics: Numerics = "fp32",
    tokens: int = 4096,
    check: Callable[[int, int], None] = lambda done, total: None,
) -> list[np.ndarray]:
    """−ln p(token | document so far) for every token of every document, float64, one array per document.

    The first token costs ln V: nothing precedes it, and training within segments never predicts it. docs: token ids
    without end-of-text. context, overlap: see `windows` (overlap None = half the context). tokens: how many are packed into one
    forward pass; no result depends on it beyond rounding. check: called with (windows done, of all) between passes; may raise.
    """
    import torch

    from upslope.precision.autocast import autocast

    overlap = max(1, context // 2) if overlap is None else overlap
    found = [np.full(len(doc), np.nan) for doc in docs]
    for nats in found:
        nats[:1] = math.log(model.config.vocab)
    cuts = list(windows(docs, context, overlap))
    device = next(model.parameters()).device
    with torch.no_grad(), autocast(numerics, device.type):
        done = 0
        for pack in _packs(cuts, tokens):
            check(done, len(cuts))
            done += len(pack)
            ids = torch.from_numpy(np.concatenate([w.ids for w in pack])).to(device)
            seg = torch.repeat_interleave(torch.arange(len(pack)), torch.tensor([len(w.ids) for w in pack])).to(device)
            hidden = model(ids, seg)  # (T, d)
            ends = np.cumsum([len(w.ids) for w in pack])
            at = np.concatenate([np.arange(end - w.scored, end) for w, end in zip(pack, ends, strict=True)])
            costs = _nats(model, hidden, ids, torch.from_numpy(at).to(device)).double().cpu().numpy()
            for w, part in zip(pack, np.split(costs, np.cumsum([w.scored for w in pack])[:-1]), strict=True):
                found[w.doc][w.start : w.start + w.scored] = part
    if any(not np.isfinite(x).all() for x in found):
        raise FloatingPointError("the model gives log-probabilities that are not finite")
    return found


def _nats(model: Transformer, hidden: torch.Tensor, ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """−log softmax at the positions before `at`, of the tokens at `at`; logits in float32, never all at once."""
    import torch

    parts = []
    for rows in at.split(LOGIT_ROWS):
        logits = model.logits(hidden[rows - 1]).float()
        parts.append(torch.nn.functional.cross_entropy(logits, ids[rows], reduction="none"))
    return torch.cat(parts)


def _packs(cuts: Sequence[Window], tokens: int) -> Iterator[list[Window]]:
    """Windows in order, as many as fit into `tokens` (at least one)."""
    pack: list[Window] = []
    size = 0
    for cut in cuts:
        if pack and size + len(cut.ids) > tokens:
            yield pack
            pack, size = [], 0
        pack.append(cut)
        size += len(cut.ids)
    if pack:
        yield pack
