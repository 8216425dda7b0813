"""Next-token training on a stream of documents. Mid-training is a second one: other rows, other mixture, init = load."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from upslope.config import Duration, Input, Neutral, Wants
from upslope.machine.stage import Cost
from upslope.optim.ramp import Ramp, Stairs
from upslope.optim.ramp import steps as ramp_steps
from upslope.train.init import Init, Scratch, materialise, restore, write_checkpoint
from upslope.train.stage import Training

if TYPE_CHECKING:
    from upslope.machine.context import Context
    from upslope.model.checkpoint import Checkpoint
    from upslope.train.batch import Batch


class Pretrain(Training):
    """Trains on rows of `row_length` tokens drawn from token shards by a mixture; attention stays inside documents.

    tokenizer: for init kind "scratch" only; a checkpoint brings its own. rows: rows a step. z_loss: weight of the squared
    log-normaliser of the logits. length: "tok" counts tokens read, "ep" passes over the shards' tokens of the mixture's
    sources. packing: how documents share rows (`tokens.stream.Stream`). ramp: tokens of a batch by tokens seen, in place of `rows`.
    order: names the order of samples: of stages that read the same sources in rows of one length, a later one of the same name (and seed)
    begins where the earlier one began.
    """

    kind: ClassVar[str] = "pretrain"
    code: ClassVar[tuple[str, ...]] = (*Training.code, "upslope.tokens")

    init: Init
    tokenizer: Annotated[Input | None, Wants("Tokenizer")] = None
    shards: Annotated[tuple[Input, ...], Wants("TokenShards")]
    mixture: Annotated[Input, Wants("Mixture")]
    length: Duration = Duration.of("20tpp")
    rows: int = Field(default=32, ge=1)
    row_length: int = Field(default=1024, ge=2)
    packing: Annotated[Literal["concat", "best_fit"], Neutral("concat")] = "concat"
    order: Annotated[str, Neutral("")] = ""
    ramp: Annotated[Ramp | None, Neutral(None)] = None
    z_loss: float = Field(default=1e-5, ge=0)

    @model_validator(mode="after")
    def _one_tokenizer(self) -> Self:
        if isinstance(self.init, Scratch) != (self.tokenizer is not None):
            raise ValueError("tokenizer: needed with init kind 'scratch', and only there (a checkpoint brings its own)")
        return self

    @model_validator(mode="after")
    def _whole_rows(self) -> Self:
        if self.ramp is not None:
            sizes = self.ramp.batches if isinstance(self.ramp, Stairs) else (self.ramp.first, self.ramp.last, self.ramp.grain)
            if odd := [n for n in sizes if n % self.row_length]:
                raise ValueError(f"ramp: {odd[0]} tokens are not whole rows of row_length = {self.row_length}")
        return self

    def batches(self, held: int, parameters: int) -> list[tuple[int, int]]:
        """(first row, rows) of each step. held: tokens of an epoch."""
        if self.ramp is None:
            n = self.length.steps(self.rows * self.row_length, tokens_per_epoch=held, params=parameters)
            return [(k * self.rows, self.rows) for k in range(n)]
        counted = self.length.unit == "st"
        tokens = sys.maxsize if counted else self.length.steps(1, tokens_per_epoch=held, params=parameters)
        grown = islice(ramp_steps(self.ramp, tokens), int(self.length.amount) if counted else None)
        return [(seen // self.row_length, size // self.row_length) for seen, size in grown]

    def stream_seed(self, seed_of: Callable[..., int]) -> int:
        """The seed of the order of rows. seed_of: of the stage's seed, as `Context.seed_of`."""
        return seed_of("stream", *([self.order] if self.order else []))

    def _fits(self, vocab: int) -> None:
        """UsageError where the weights, gradients and optimizer states of a new model cannot fit, before any is made."""
        from upslope.train.rehearsal.local import Settings, available, too_little_memory

        if isinstance(self.init, Scratch):
            config = self.init.model if self.init.model.vocab else self.init.model.replace(vocab=vocab)
            settings = Settings(self.optim, self.rows * self.row_length, self.row_length, self.micro_tokens)
            if error := too_little_memory(config, settings, self.mesh, available()):
                raise error

    def cost(self, inputs: Mapping[str, Any]) -> Cost:
        """Floating-point operations of a run from scratch whose length does not depend on the data; else nothing is known."""
        vocab = getattr(inputs.get("tokenizer"), "vocab_size", 0)
        if not isinstance(self.init, Scratch) or self.length.unit == "ep" or not (self.init.model.vocab or vocab):
            return Cost()
        model = self.init.model if self.init.model.vocab else self.init.model.replace(vocab=vocab)
        tokens = self.row_length * sum(rows for _, rows in self.batches(0, model.params()))
        return Cost(flops=3 * model.flops(self.row_length) * tokens)

    def run(self, ctx: Context) -> Checkpoint:
        """Trains and writes a checkpoint with its optimizer state."""
        from upslope.tokens.mixture import Mixture
        from upslope.tokens.shards import TokenShards
        from upslope.tokens.stream import Stream
        from upslope.tokens.tokenizer import Tokenizer
        from upslope.train.build import of_stream
        from upslope.train.losses import Imitate

        with ctx.events.state("load"):
            given = ctx.open(self.tokenizer, Tokenizer) if self.tokenizer is not None else None
            self._fits(given.vocab_size if given is not None else 0)
            model, tokenizer = materialise(self.init, ctx, given)
            if self.row_length > model.config.context:
                model.config = model.config.replace(context=self.row_length)
            parameters = sum(p.numel() for p in model.parameters())
            trainer = self.trainer(ctx, model)
            restore(self.init, ctx, trainer)
            shards = [ctx.open(s, TokenShards) for s in self.shards]
            mixture = ctx.open(self.mixture, Mixture)
            held = sum(len(s.tokens(name)) for s in shards for name in s.sources() if name in mixture.sources)
            plan = self.batches(held, parameters)
            total = sum(rows for _, rows in plan)
            stream = Stream(shards, mixture, self.row_length, self.stream_seed(ctx.seed_of), total=max(total, 1), packing=self.packing)

        def batch(step: int) -> Batch:
            first, rows = plan[min(step, len(plan) - 1)]
            beyond = max(0, step - len(plan) + 1)  # after batches were passed over, the last size goes on
            return of_stream(stream, first + beyond * rows, rows)

        history = self.fitted(ctx, trainer, batch, Imitate(self.z_loss), len(plan), self.row_length, total * self.row_length)
        epochs = {name: round(n, 4) for name, n in sorted(stream.epochs(total).items())}
        ctx.fact(epochs=epochs, packing={name: p._asdict() for name, p in sorted(stream.packed().items())})
        ctx.say(f"{history.tokens / 1e6:.2f}M tokens through {parameters / 1e6:.2f}M parameters: {history.last('nll'):.3f} nats a token")
        return write_checkpoint(ctx.out, trainer, tokenizer)
