"""Batches from what stages read: streams of documents, conversations, preference pairs, sampled completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from upslope.chat.artifacts import Chat, Pair
from upslope.chat.messages import Tokens
from upslope.chat.render import Renderer
from upslope.config import UsageError
from upslope.machine.context import Context
from upslope.tokens.stream import Stream
from upslope.train.batch import Batch, Distil


@dataclass(frozen=True)
class Rendered:
    """A tokenised example. ids: (N,) int64. weight: (N,) float32, zero where nothing is imitated."""

    ids: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return int(self.ids.numel())


def of_stream(stream: Stream, first: int, rows: int) -> Batch:
    """Rows first … first + rows - 1 of a stream; every token is imitated but the first of each segment."""
    ids, seg, origin, offset = [], [], [], 0
    for k in range(first, first + rows):
        sample = stream.sample(k)
        ids.append(sample.ids)
        seg.append(sample.seg + offset)
        origin += [k] * len(sample.pieces)
        offset += len(sample.pieces)
    flat = torch.from_numpy(np.concatenate(seg).astype(np.int64))
    starts = torch.ones_like(flat, dtype=torch.bool)
    starts[1:] = flat[1:] != flat[:-1]
    pos = torch.arange(len(flat)) - starts.nonzero()[:, 0][flat]
    return Batch(
        ids=torch.from_numpy(np.concatenate(ids).astype(np.int64)),
        seg=flat,
        pos=pos,
        origin=torch.tensor(origin),
        imitate=(~starts).to(torch.float32),
    )


def render(renderer: Renderer, chat: Chat) -> Rendered:
    """A conversation as tokens; trained are the assistant's own words. UsageError where it has none."""
    return _rendered(renderer.open(chat.messages), chat.id)


def fitting(examples: Sequence[Rendered], context: int, ctx: Context) -> list[Rendered]:
    """The examples of at most `context` tokens; the others are counted in a fact, and alarmed."""
    kept = [e for e in examples if len(e) <= context]
    left = len(examples) - len(kept)
    if left:
        ctx.events.alarm("chats longer than the context are left out", left_out=left, of=len(examples), context=context)
    ctx.fact(left_out_too_long=left)
    return kept


def render_pair(renderer: Renderer, pair: Pair) -> tuple[Rendered, Rendered]:
    """(chosen, rejected): the prompt and one reply each; only the reply is weighted."""
    prompt = tuple(replace(m, train=False) for m in pair.prompt)
    chosen, rejected = (_rendered(renderer.open((*prompt, reply)), pair.id) for reply in (pair.chosen, pair.rejected))
    return chosen, rejected


def of_rendered(examples: Sequence[Rendered], origin: Sequence[int]) -> Batch:
    """Whole examples end to end, each its own segment. origin: an index for each."""
    return Batch.of([e.ids for e in examples], origin=origin, imitate=torch.cat([e.weight for e in examples]))


def of_pairs(pairs: Sequence[tuple[Rendered, Rendered]], origin: Sequence[int], ref: Tensor | None = None) -> Batch:
    """Pairs as segments 2p (chosen) and 2p + 1 (rejected). ref: (P, 2) log-probs of the replies under the reference."""
    b = of_rendered([side for pair in pairs for side in pair], [o for o in origin for _ in range(2)])
    return replace(b, pairs=torch.arange(2 * len(pairs)).view(-1, 2), ref=None if ref is None else ref.reshape(-1))


def of_completions(prompts: Sequence[Sequence[int]], completions: Sequence[npt.NDArray[np.int32]]) -> Batch:
    """Prompts with what was sampled after them; the sampled tokens are imitated. Empty completions are refused."""
    if any(len(c) == 0 for c in completions):
        raise UsageError("a completion without tokens cannot be trained on")
    examples = []
    for prompt, completion in zip(prompts, completions):
        ids = torch.cat([torch.as_tensor(prompt, dtype=torch.int64), torch.as_tensor(completion, dtype=torch.int64)])
        examples.append(Rendered(ids, (torch.arange(len(ids)) >= max(1, len(prompt))).to(torch.float32)))
    return of_rendered(examples, list(range(len(examples))))


@torch.no_grad()
def teach(
    b: Batch, hidden: Callable[[Tensor, Tensor, Tensor], Tensor], logits: Callable[[Tensor], Tensor], top_k: int, chunk: int = 4096
) -> Batch:
    """The batch with a teacher's distribution on its imitated columns, which become distilled ones.

    hidden: (ids, seg, pos) → (T, d) of the teacher; logits: (n, d) → (n, V). top_k: tokens kept per column, the rest as
    one bucket; 0 = the whole vocabulary, whose ids are not stored row by row.
    """
    if b.imitate is None or not bool((b.imitate != 0).any()):
        raise UsageError("teach: the batch says nowhere what to learn (imitate)")
    at = (b.imitate != 0).nonzero()[:, 0]
    ids, logprobs = [], []
    for part in hidden(b.ids, b.seg, b.pos)[at - 1].split(chunk):
        z = logits(part)
        logp = torch.log_softmax(z if z.dtype == torch.float64 else z.float(), -1)
        whole = not 0 < top_k < logp.shape[-1]
        best = None if whole else logp.topk(top_k).indices
        logprobs.append(logp if best is None else logp.gather(-1, best))
        ids += [] if best is None else [best]
    kept = torch.cat(logprobs)
    t, k = len(b), kept.shape[1]
    if ids:
        left = 1 - kept.exp().sum(-1)
        rest = left.clamp_min(torch.finfo(kept.dtype).eps).log()
        all_ids = torch.zeros(t, k, dtype=torch.int64).index_copy(0, at, torch.cat(ids))
    else:
        rest = torch.full_like(kept[:, 0], -torch.inf)
        all_ids = torch.arange(k).expand(t, k)
    distil = Distil(b.imitate, all_ids, kept.new_zeros(t, k).index_copy(0, at, kept), kept.new_zeros(t).index_copy(0, at, rest))
    return replace(b, distil=distil, imitate=None)


def _rendered(tokens: Tokens, name: str) -> Rendered:
    weight = torch.from_numpy(tokens.trainable.astype(np.float32))
    if len(tokens) and weight[0]:
        weight = weight.clone()
        weight[0] = 0.0
    if not bool(weight.any()):
        raise UsageError(f"example {name!r}: nothing in it is trained\nway out: an assistant message with train = true, and content")
    return Rendered(torch.from_numpy(tokens.ids.astype(np.int64)), weight)
