"""The engine protocol: token ids in, token ids out, with the log-probabilities of the distribution sampled from.

This module is torch-free; `LocalEngine`, the engine of this package, lives in `upslope.generate.local` and is also found here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from upslope.chat.model import Stop as Stop
from upslope.config import Config

if TYPE_CHECKING:
    from upslope.generate.local import LocalEngine as LocalEngine
    from upslope.model.weights import Weights

I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]


class Sampling(Config):
    """How to sample. The kept set is: top_k most likely tokens, then the smallest set with mass ≥ top_p, both after temperature.

    max_new: most tokens to sample. temperature: 0 = greedy. top_p: 1 = off. top_k: 0 = off. stop: token ids that end a
    completion besides the tokenizer's end-of-turn and end-of-text ids.
    """

    max_new: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    stop: tuple[int, ...] = ()


class Request(NamedTuple):
    """One completion wanted. ids: the prompt. seed: with the token position it determines the sampling noise, and nothing else does.

    record: what to keep besides the tokens, a subset of `EngineInfo.records`.
    """

    id: str
    ids: Sequence[int]
    sampling: Sampling
    seed: int
    record: frozenset[str] = frozenset()


class Completion(NamedTuple):
    """What was sampled; the stop token is part of `ids`.

    ids: (N,) int32. logprobs: (N,) float32, of the distribution sampled from: after temperature and kept set (greedy: 0).
    raw: (N,) at temperature 1 over the full vocabulary, if asked for. version: (N,) weight version that produced each token.
    """

    id: str
    ids: I32
    stop: Stop
    logprobs: F32
    raw: F32 | None
    version: I32


class EngineInfo(NamedTuple):
    """What an engine is. context: longest prompt + completion, tokens. records ⊆ {"raw"}: what `Request.record` may ask for.

    invariant: whether results are bit-equal in any batch composition (else equal up to rounding). version: of the weights.
    """

    vocab: int
    context: int
    records: frozenset[str]
    invariant: bool
    version: int


class Scores(NamedTuple):
    """Log-probabilities of a given sequence. logprobs: (N,) float32, entry t is of ids[t] given ids[:t]; entry 0 is 0 (no context).

    top_ids, top: (N, top) the most likely tokens at each place and their log-probabilities (place 0: -1 and 0); None if top = 0.
    """

    logprobs: F32
    top_ids: I32 | None
    top: F32 | None


class Engine(Protocol):
    """Submit, step, score, load. The outcome of a request is a function of (weights, request), not of its neighbours."""

    @property
    def info(self) -> EngineInfo:
        """Vocabulary, context, what can be recorded, weight version."""
        ...

    def submit(self, requests: Sequence[Request]) -> None:
        """Queues requests. UsageError for an id in flight, an id outside the vocabulary, an unknown record, an empty prompt."""
        ...

    def step(self) -> list[Completion]:
        """One round (at most one new token per request in flight); what finished, in order of submission."""
        ...

    def cancel(self, ids: Sequence[str]) -> None:
        """Ends requests: they come back from the next `step` as ABORTED with what they have."""
        ...

    def score(self, seqs: Sequence[Sequence[int]], temperature: float = 1.0, top: int = 0) -> list[Scores]:
        """Log-probabilities of given sequences under softmax(logits / temperature)."""
        ...

    def load(self, weights: Weights, version: int) -> None:
        """Takes new weights; the version must rise. Requests in flight go on: earlier tokens keep the caches they had."""
        ...


def generate(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """Runs requests to their end; completions in the order of the requests."""
    engine.submit(requests)
    done: dict[str, Completion] = {}
    while len(done) < len(requests):
        done.update((c.id, c) for c in engine.step())
    return [done[r.id] for r in requests]


def __getattr__(name: str) -> Any:
    if name == "LocalEngine":  # the class needs torch; configs that name Sampling must not
        from upslope.generate.local import LocalEngine

        return LocalEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
