"""A plain training loop written by hand, without any safety: what `train_speed` measures the trainer against. And transformers' Trainer.

The loop is as fast as plain PyTorch goes on a CPU: the same model on flat tokens, only the rows that predict something go through the head,
matrix products in bf16 under autocast, one fused AdamW over all parameters, gradients clipped by torch's own function, gradients dropped
rather than zeroed, and micro-batches where those fit a cache better than the whole step does. It looks at nothing: not at whether the loss
is finite, not at spikes; it saves and logs nothing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.model.transformer import Transformer
from upslope.model.weights import export_hf
from upslope.optim.config import AdamW
from upslope.optim.roles import decayed

Rows = Callable[[int], Tensor]
"""The (rows, length) tokens of a step."""


def cast(half: bool) -> AbstractContextManager[Any]:
    """Where matrix products are in bf16."""
    return torch.autocast("cpu", torch.bfloat16) if half else nullcontext()


def adamw(model: nn.Module, config: AdamW) -> torch.optim.Optimizer:
    """torch's fused AdamW with the groups of a config: matrices decay, embeddings and vectors do not."""
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, p in model.named_parameters():
        groups[decayed(name, p)].append(p)
    given = [{"params": groups[True], "weight_decay": config.weight_decay}, {"params": groups[False], "weight_decay": 0.0}]
    return torch.optim.AdamW(given, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


class Plain:
    """The loop over our model."""

    def __init__(self, model: Transformer, config: AdamW, rows: Rows, half: bool) -> None:
        self.model, self.rows, self.half = model, rows, half
        self.optim = adamw(model, config)
        self.parameters = list(model.parameters())
        self.done, self.parts = 0, 1

    def loss(self, ids: Tensor) -> Tensor:
        """Mean cross-entropy of all tokens that have a predecessor. ids: (rows, length)."""
        rows, length = ids.shape
        with cast(self.half):
            hidden = self.model(ids.flatten(), torch.arange(rows).repeat_interleave(length), torch.arange(length).repeat(rows))
            logits = self.model.logits(hidden.view(rows, length, -1)[:, :-1].flatten(0, 1))
        return F.cross_entropy(logits.float(), ids[:, 1:].flatten())

    def run(self, steps: int) -> tuple[float, list[float]]:
        """Seconds of some steps, and their losses."""
        losses, began = [], time.perf_counter()
        for _ in range(steps):
            total = torch.zeros(())
            for part in self.rows(self.done).chunk(self.parts):
                loss = self.loss(part) / self.parts
                loss.backward()
                total += loss.detach()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
            self.optim.step()
            self.optim.zero_grad(set_to_none=True)
            losses.append(total)
            self.done += 1
        return time.perf_counter() - began, [float(v) for v in losses]

    def tune(self, steps: int = 3) -> None:
        """Chooses into how many passes a step is split: 1, 2 or 4, whichever is fastest here."""

        def took(parts: int) -> float:
            self.parts = parts
            return min(self.run(1)[0] for _ in range(steps))

        self.parts = min((1, 2, 4), key=took)


def theirs_of(model: Transformer) -> Any:
    """transformers' model with the weights of ours."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        export_hf(model, None, Path(folder))
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()


class PlainTheirs(Plain):
    """The same loop over transformers' model of the same shape: the least that transformers' Trainer could cost."""

    def __init__(self, model: Transformer, config: AdamW, rows: Rows, half: bool) -> None:
        super().__init__(model, config, rows, half)
        self.theirs = theirs_of(model)
        self.optim = adamw(self.theirs, config)
        self.parameters = list(self.theirs.parameters())

    def loss(self, ids: Tensor) -> Tensor:
        """As transformers computes it."""
        with cast(self.half):
            found: Tensor = self.theirs(ids, labels=ids, use_cache=False).loss
        return found


def accelerate_is_there() -> bool:
    """transformers' Trainer does not start without it."""
    return find_spec("accelerate") is not None


class HFTrainer:
    """transformers' Trainer with its defaults, but for what would be unfair: no saving, no reporting. log_every: steps."""

    def __init__(self, model: Transformer, config: AdamW, rows: Rows, half: bool, log_every: int = 5) -> None:
        self.theirs, self.config, self.rows, self.half, self.log_every = theirs_of(model), config, rows, half, log_every
        self.done = 0

    def run(self, steps: int) -> tuple[float, list[float]]:
        """Seconds between the callbacks at the begin and end of training, and the logged mean loss."""
        import transformers

        batches = [self.rows(self.done + k) for k in range(steps)]
        self.done += steps
        data = [{"input_ids": row, "labels": row} for ids in batches for row in ids]
        marks: list[float] = []

        class Clock(transformers.TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                marks.append(time.perf_counter())

            def on_train_end(self, *args: Any, **kwargs: Any) -> None:
                marks.append(time.perf_counter())

        with tempfile.TemporaryDirectory() as folder:
            options = transformers.TrainingArguments(
                output_dir=folder, max_steps=steps, per_device_train_batch_size=len(batches[0]), bf16=self.half, use_cpu=True,
                learning_rate=self.config.lr, lr_scheduler_type="constant", weight_decay=self.config.weight_decay, max_grad_norm=1.0,
                adam_beta1=self.config.betas[0], adam_beta2=self.config.betas[1], adam_epsilon=self.config.eps, optim="adamw_torch_fused",
                save_strategy="no", report_to=[], logging_steps=self.log_every, disable_tqdm=True, dataloader_num_workers=0, seed=0,
            )  # fmt: skip
            trainer = transformers.Trainer(model=self.theirs, args=options, train_dataset=data, callbacks=[Clock()])
            trainer.remove_callback(transformers.PrinterCallback)
            found = trainer.train()
        return marks[-1] - marks[0], [float(found.training_loss)]
