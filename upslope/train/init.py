"""Where a training stage's weights come from: drawn, read from a checkpoint, or continued with the optimizer's state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from upslope.config import Config, Input, Neutral, UsageError, Wants
from upslope.model.config import ModelConfig
from upslope.train.extension import Extension

if TYPE_CHECKING:
    from upslope.machine.context import Context
    from upslope.model.checkpoint import Checkpoint
    from upslope.model.transformer import Transformer
    from upslope.tokens.tokenizer import Tokenizer
    from upslope.train.trainer import Trainer


class Scratch(Config):
    """New weights, drawn per parameter name from the stage's seed. The vocabulary is the tokenizer's."""

    kind: Literal["scratch"] = "scratch"
    model: ModelConfig


class Load(Config):
    """Weights of a checkpoint; a new optimizer.

    model: the description to go on as, where it is another than the checkpoint's (an indexer, a module of MTP or a rope scaling added,
    an indexer's stage changed): what the checkpoint has must fit, what it lacks is drawn from the stage's seed. Its vocabulary may be 0.
    extend: to a longer context; applies to `model` where both are given.
    """

    kind: Literal["load"] = "load"
    checkpoint: Annotated[Input, Wants("Checkpoint")]
    model: Annotated[ModelConfig | None, Neutral(None)] = None
    extend: Annotated[Extension | None, Neutral(None)] = None


class Continue(Config):
    """Weights and optimizer state of a checkpoint: the branch point of schedules with segments (WSD-S, extensions).

    extend: to a longer context; it adds no parameter, so the state fits.
    """

    kind: Literal["continue"] = "continue"
    checkpoint: Annotated[Input, Wants("Checkpoint")]
    extend: Annotated[Extension | None, Neutral(None)] = None


Init = Annotated[Scratch | Load | Continue, Field(discriminator="kind")]
From = Annotated[Load | Continue, Field(discriminator="kind")]


def materialise(init: Scratch | Load | Continue, ctx: Context, tokenizer: Tokenizer | None = None) -> tuple[Transformer, Tokenizer]:
    """The model that a stage starts from, in float32, and its tokenizer.

    tokenizer: needed with Scratch; with a checkpoint its own is used. UsageError where a model's own vocabulary does not
    fit the tokenizer.
    """
    from upslope.model.init import initialise
    from upslope.model.transformer import Transformer

    if not isinstance(init, Scratch):
        checkpoint = _open(init, ctx)
        model = checkpoint.model()
        wanted = init.model if isinstance(init, Load) and init.model is not None else model.config
        wanted = wanted if wanted.vocab else wanted.replace(vocab=model.config.vocab)
        wanted = init.extend.extended(wanted) if init.extend is not None else wanted
        if wanted != model.config:
            model = carried_over(model, wanted, ctx.seed_of("init"))
        return model, checkpoint.tokenizer()
    if tokenizer is None:
        raise UsageError("init kind 'scratch' needs a tokenizer\nway out: give the stage a tokenizer input")
    config = init.model if init.model.vocab else init.model.replace(vocab=tokenizer.vocab_size)
    if config.vocab < tokenizer.vocab_size:
        raise UsageError(f"init.model.vocab = {config.vocab}: the tokenizer has {tokenizer.vocab_size} tokens\nway out: leave it at 0")
    return initialise(Transformer(config), ctx.seed_of("init")), tokenizer


def carried_over(model: Transformer, wanted: ModelConfig, seed: int) -> Transformer:
    """A model of another description with the tensors of this one; those that it lacks are drawn. UsageError names what finds no place."""
    import torch

    from upslope.model.init import initialise
    from upslope.model.transformer import Transformer

    grown = initialise(Transformer(wanted), seed)
    have, need = model.tensors(), grown.tensors()
    lost = [f"{n} {tuple(t.shape)}" for n, t in have.items() if n not in need or need[n].shape != t.shape]
    if lost:
        raise UsageError(
            f"init.model has no place for {len(lost)} tensors of the checkpoint: {', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}\n"
            "way out: start from the checkpoint's description (model.json) and only add to it"
        )
    with torch.no_grad():
        for name, tensor in have.items():
            need[name].copy_(tensor)
    return grown.eval()


def restore(init: Scratch | Load | Continue, ctx: Context, trainer: Trainer) -> None:
    """Gives a trainer the optimizer state of the checkpoint that it continues; nothing for the other kinds.

    UsageError where adapters were attached and the base is not all from a checkpoint, or an optimizer's state would be without use.
    """
    from upslope.model.adapters import adapted

    if adapted(trainer.model) is not None:
        _adaptable(init, ctx, trainer.model)
    elif isinstance(init, Continue):
        from upslope.train.resume import load_optimizer

        whole = {f"optim.{n}": t for n, t in load_optimizer(_open(init, ctx).state).items()}
        needed = {n: t for n, t in trainer.state().items() if n.startswith("optim.")}
        mine = trainer.ranks.cut(whole, needed)
        one = trainer.ranks.world == 1  # a stage of a pipeline takes no more than its own
        trainer.optimizer.load({n.removeprefix("optim."): t for n, t in mine.items() if one or n in needed})


def write_checkpoint(out: Path, trainer: Trainer, tokenizer: Tokenizer) -> Checkpoint:
    """Writes the trained model, its scalar head if it has one, and the optimizer state, so that `Continue` works.

    Of adapters: the merged model, `adapter/` as PEFT writes it where that can hold them all, and no optimizer state, since the
    parameters that it is of are merged.
    """
    from upslope.model.adapter_files import save_adapter, unsaved
    from upslope.model.adapters import adapted
    from upslope.model.checkpoint import Checkpoint
    from upslope.train.resume import save_optimizer

    if trainer.ranks.world > 1:
        return _write_whole(out, trainer, tokenizer)
    if adapted(trainer.model) is None:
        save_optimizer(out / "state", trainer.optimizer.state())
    elif not unsaved(trainer.model):
        save_adapter(trainer.model, out / "adapter")
    return Checkpoint.write(out, trainer.model, tokenizer, trainer.scalar)


def _write_whole(out: Path, trainer: Trainer, tokenizer: Tokenizer) -> Checkpoint:
    """The same from the parts that ranks hold; rank 0 writes."""
    import torch

    from upslope.model.checkpoint import Checkpoint
    from upslope.model.heads import ScalarHead
    from upslope.model.transformer import Transformer
    from upslope.train.resume import save_optimizer
    from upslope.train.spread import whole_state
    from upslope.train.trainer import under

    state = whole_state(trainer)
    if trainer.ranks.rank:
        return Checkpoint(out)
    save_optimizer(out / "state", under(state, "optim."))
    model = Transformer(trainer.config, device=torch.device("meta"))
    model.load_state_dict(under(state, "model."), assign=True)
    head = None
    if scalar := under(state, "scalar."):
        head = ScalarHead(trainer.config.d_model)
        head.load_state_dict(scalar)
    return Checkpoint.write(out, model, tokenizer, head)


def _open(init: Load | Continue, ctx: Context) -> Checkpoint:
    from upslope.model.checkpoint import Checkpoint

    return ctx.open(init.checkpoint, Checkpoint)


def _adaptable(init: Scratch | Load | Continue, ctx: Context, model: Transformer) -> None:
    """UsageError unless a model with adapters is, but for these, what a checkpoint holds."""
    from upslope.model.adapters import folded
    from upslope.model.transformer import Transformer

    if isinstance(init, Continue):
        raise UsageError(
            "init kind 'continue' beside `adapter`: the optimizer's state is of weights that adapters freeze\n"
            "way out: init kind 'load'; what earlier adapters learnt is in the checkpoint's weights"
        )
    if isinstance(init, Scratch):
        raise UsageError("init kind 'scratch' beside `adapter` would freeze weights as they were drawn\nway out: init kind 'load'")
    if init.model is not None:
        drawn = sorted(set(folded(model)) - set(Transformer(_open(init, ctx).config(), device="meta").tensors()))
        if drawn:
            raise UsageError(
                f"init.model adds {len(drawn)} tensors ({drawn[0]!r}), which `adapter` would freeze as they were drawn\n"
                "way out: train them first, by a stage without `adapter`"
            )
