"""A learned reward: the scalar head of a reward model, read at the end of the conversation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from upslope.config import Exec, Input, Wants
from upslope.rl.protocol import TOTAL, Grader, Opener, Reward, Score, Trace

if TYPE_CHECKING:
    from upslope.chat.messages import Message
    from upslope.model.checkpoint import Checkpoint


class RewardModel(Reward):
    """sigmoid(r) of the head's score r for (prompt, answer), or r itself where squash is False.

    Squashed scores stay in (0, 1), so that they can be gated and added; differences near the ends shrink, which also
    bounds what exploiting the model can pay. Truncated answers are judged like others, as they stand.
    tokens: of one forward pass. Source: Ouyang et al. 2022 §3.5.
    """

    kind: ClassVar[str] = "reward_model"

    checkpoint: Annotated[Input, Wants("Checkpoint")]
    squash: bool = True
    tokens: Annotated[int, Field(gt=0), Exec()] = 16384

    def prepare(self, ctx: Opener) -> Grader:
        """Loads the model; UsageError for a checkpoint without a head."""
        from upslope.model.checkpoint import Checkpoint

        return Scorer(ctx.open(self.checkpoint, Checkpoint), self.squash, self.tokens)


class Scorer:
    """Scores conversations with a reward-model checkpoint, in batches of whole conversations."""

    def __init__(self, checkpoint: Checkpoint, squash: bool = True, tokens: int = 16384) -> None:
        from upslope.chat.render import ChatML

        self.head = checkpoint.reward_head().eval()
        self.model: Any = checkpoint.model()
        self.renderer = ChatML(checkpoint.tokenizer())
        self.squash, self.tokens = squash, tokens

    def score(self, group: Sequence[Trace]) -> list[Mapping[str, Score]]:
        """Scores of one group."""
        return self.score_all([group])[0]

    def score_all(self, groups: Sequence[Sequence[Trace]]) -> list[list[Mapping[str, Score]]]:
        """Scores of many groups, in as few forward passes as fit."""
        values = iter(self.values([(*t.prompt, t.reply) for g in groups for t in g]))
        return [[{TOTAL: Score.of(next(values))} for _ in g] for g in groups]

    def values(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """One number per conversation, each ending with the assistant's answer."""
        import torch

        from upslope.train.batch import Batch

        out: list[float] = []
        with torch.no_grad():
            for part in self._parts([self.renderer.open(c).ids.tolist() for c in conversations]):
                batch = Batch.of(part)
                last = batch.lengths().cumsum(0) - 1
                raw = self.head(self.model(batch.ids, batch.seg, batch.pos)[last])
                out += (torch.sigmoid(raw) if self.squash else raw).double().tolist()
        return out

    def _parts(self, sequences: Sequence[list[int]]) -> Iterator[list[list[int]]]:
        """Sequences in order, cut into parts of at most `tokens` tokens."""
        part: list[list[int]] = []
        size = 0
        for ids in sequences:
            if part and size + len(ids) > self.tokens:
                yield part
                part, size = [], 0
            part.append(ids)
            size += len(ids)
        if part:
            yield part

    def close(self) -> None:
        """Nothing is held beyond memory."""
