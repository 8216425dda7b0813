"""The engine of this package: continuous batching over one batched key-value cache, in this process.

Each distinct prompt is read once and forked for its group; rows that finish are replaced by the last rows, so the batch stays dense;
a decode step is a fixed number of tensor operations whatever the number of rows.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from upslope.config import UsageError
from upslope.generate.engine import Completion, EngineInfo, Request, Scores, Stop
from upslope.generate.sampler import Knobs, draw, uniforms
from upslope.model.cache import Cache
from upslope.model.linear import Linear, WideLinear
from upslope.model.moe import Experts
from upslope.model.transformer import Transformer
from upslope.model.weights import Weights, copy_into, end_ids, family_for, tensors
from upslope.precision.autocast import NARROW, autocast
from upslope.precision.config import Numerics

if TYPE_CHECKING:
    from upslope.tokens.tokenizer import Tokenizer

PREFILL = 8192  # tokens a forward pass while reading prompts or scoring: bounds memory
LOGITS = 2048  # rows of logits held at once while scoring
RECORDS = frozenset({"raw"})


class _Flight(NamedTuple):
    """A request on its way; serial: its place in the order of submission."""

    serial: int
    request: Request


class _Rows:
    """The state of the rows in flight, one numpy array per property, row i = cache slot i."""

    def __init__(self) -> None:
        self.count = 0
        self.flight: list[_Flight | None] = []
        self.seed = np.zeros(0, np.uint64)
        self.prompt = np.zeros(0, np.int64)
        self.made = np.zeros(0, np.int64)
        self.limit = np.zeros(0, np.int64)
        self.last = np.zeros(0, np.int64)
        self.temperature = np.zeros(0, np.float32)
        self.top_p = np.zeros(0, np.float32)
        self.top_k = np.zeros(0, np.int64)
        self.raw_wanted = np.zeros(0, bool)
        self.stops = np.full((0, 0), -1, np.int64)
        self.tokens = np.zeros((0, 0), np.int32)
        self.version = np.zeros((0, 0), np.int32)
        self.logprobs = np.zeros((0, 0), np.float32)
        self.raw = np.zeros((0, 0), np.float32)

    def _arrays(self) -> list[str]:
        return [name for name, value in vars(self).items() if isinstance(value, np.ndarray)]

    def room(self, rows: int, new: int, stops: int) -> None:
        """Makes every array hold at least this many rows, new tokens and stop ids."""
        for name in self._arrays():
            old: np.ndarray = getattr(self, name)
            width = () if old.ndim == 1 else (max(old.shape[1], stops if name == "stops" else new),)
            shape = (max(old.shape[0], rows), *width)
            if shape != old.shape:
                grown = np.full(shape, -1 if name == "stops" else 0, old.dtype)
                grown[tuple(slice(n) for n in old.shape)] = old
                setattr(self, name, grown)
        self.flight += [None] * (rows - len(self.flight))

    def add(self, flight: _Flight) -> int:
        """Puts a request into the next row; `room` was made before."""
        row, (request, sampling) = self.count, (flight.request, flight.request.sampling)
        self.flight[row] = flight
        self.seed[row] = request.seed & 0xFFFFFFFFFFFFFFFF
        self.prompt[row], self.made[row], self.limit[row] = len(request.ids), 0, sampling.max_new
        self.temperature[row], self.top_p[row], self.top_k[row] = sampling.temperature, sampling.top_p, sampling.top_k
        self.raw_wanted[row] = "raw" in request.record
        self.stops[row] = -1
        self.stops[row, : len(sampling.stop)] = sampling.stop
        self.count += 1
        return row

    def move(self, src: np.ndarray, dst: np.ndarray) -> None:
        """Rows src overwrite rows dst."""
        for name in self._arrays():
            array: np.ndarray = getattr(self, name)
            array[dst] = array[src]
        for a, b in zip(src.tolist(), dst.tolist()):
            self.flight[b] = self.flight[a]


class LocalEngine:
    """The `Engine` protocol over a copy of a model; the model given may go on being trained, `load` brings its weights in.

    eos: ids that end a completion (default: the tokenizer's end of turn and end of text). slots: most rows in flight.
    numerics: "bf16", "fp16" = matrix products in that type, as a trainer under autocast computes them; "fp32".
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None = None,
        slots: int = 512,
        numerics: Numerics = "fp32",
        eos: Sequence[int] | None = None,
        version: int = 0,
    ) -> None:
        if eos is None:
            eos = () if tokenizer is None else end_ids(tokenizer)
        self._source = copy.deepcopy(model).eval().requires_grad_(False)
        self._numerics, self._slots, self._version = numerics, slots, version
        self._refresh()
        self._device = next(model.parameters()).device
        self._is_eos = np.zeros(model.config.vocab, bool)
        self._is_eos[list(eos)] = True
        self._cache = Cache(model.config, 0, 64, device=self._device)
        self._rows = _Rows()
        self._waiting: deque[_Flight] = deque()
        self._in_flight: set[str] = set()
        self._cancelled: set[str] = set()
        self._serial = 0

    @property
    def info(self) -> EngineInfo:
        """Vocabulary, context, what can be recorded, weight version."""
        config = self._source.config
        return EngineInfo(config.vocab, config.context, RECORDS, False, self._version)

    def _refresh(self) -> None:
        """The weights that run: the source itself, or a copy with its matrices in 16 bits, cast once a version, not once a step."""
        self._model, narrow = self._source, NARROW.get(self._numerics)
        if narrow is not None:
            self._model = copy.deepcopy(self._source)
            for module in self._model.modules():
                if isinstance(module, Linear) and not isinstance(module, WideLinear):
                    module.weight.data = module.weight.data.to(narrow)
                elif isinstance(module, Experts):
                    for stack in (p for p in module.parameters() if p.ndim == 3):
                        stack.data = stack.data.to(narrow)

    def _autocast(self) -> AbstractContextManager[object]:
        return autocast(self._numerics, self._device.type)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queues requests; none is queued where one is wrong."""
        ids = [r.id for r in requests]
        if len(set(ids)) < len(ids) or not self._in_flight.isdisjoint(ids):
            twice = next(i for n, i in enumerate(ids) if i in self._in_flight or i in ids[:n])
            raise UsageError(f"request {twice!r} is already in flight: ids must be unique")
        vocab = self._source.config.vocab
        for r in requests:
            if len(r.ids) == 0:
                raise UsageError(f"request {r.id!r}: the prompt is empty; give at least one token")
            if min(r.ids) < 0 or max(r.ids) >= vocab:
                raise UsageError(f"request {r.id!r}: a token id is outside the vocabulary of {vocab}")
            if not r.record <= RECORDS:
                raise UsageError(f"request {r.id!r}: cannot record {sorted(r.record - RECORDS)}; this engine records {sorted(RECORDS)}")
        for r in requests:
            self._in_flight.add(r.id)
            self._waiting.append(_Flight(self._serial, r))
            self._serial += 1

    def cancel(self, ids: Sequence[str]) -> None:
        """Ends requests: the next `step` returns them as ABORTED with what they have. Unknown ids are ignored: they are done."""
        self._cancelled |= self._in_flight & set(ids)

    @torch.no_grad()
    def step(self) -> list[Completion]:
        """One new token for every row in flight; new requests join where there is room. Returns what ended, in order of submission.

        FloatingPointError names the request whose logits are not finite.
        """
        ended = self._abort()
        rows = self._rows
        hidden: list[Tensor] = []
        with self._autocast():
            if rows.count:
                ids = torch.from_numpy(rows.last[: rows.count]).to(self._device)
                seg = torch.arange(rows.count, device=self._device)
                hidden.append(self._model(ids, seg, cache=self._cache.at(range(rows.count))))
            ended += self._admit(hidden)
            if not rows.count:
                return [c for _, c in sorted(ended)]
            logits = self._model.logits(torch.cat(hidden)).float()
        ended += self._advance(logits)
        return [c for _, c in sorted(ended)]

    def _advance(self, logits: Tensor) -> list[tuple[int, Completion]]:
        """Samples a token for each row, books it, and takes out the rows that ended."""
        rows, n = self._rows, self._rows.count
        knobs = Knobs(rows.temperature[:n], rows.top_p[:n], rows.top_k[:n])
        drawn = draw(logits, knobs, uniforms(rows.seed[:n], rows.prompt[:n] + rows.made[:n]))
        finite = drawn.finite.cpu().numpy()
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            flight = rows.flight[row]
            assert flight is not None
            raise FloatingPointError(
                f"request {flight.request.id!r}: logits at position {int(rows.prompt[row] + rows.made[row])} are not finite "
                f"(weight version {self._version})"
            )
        tokens = drawn.tokens.cpu().numpy()
        at = np.arange(n)
        made = rows.made[:n].copy()
        rows.last[:n] = tokens
        rows.tokens[at, made] = tokens
        rows.logprobs[at, made] = drawn.logprobs.cpu().numpy()
        rows.version[at, made] = self._version
        if rows.raw_wanted[:n].any():
            raw = torch.log_softmax(logits, -1).gather(1, drawn.tokens[:, None])[:, 0]
            rows.raw[at, made] = raw.cpu().numpy()
        rows.made[:n] += 1
        eos = self._is_eos[tokens]
        stop = (rows.stops[:n] == tokens[:, None]).any(1)
        length = rows.made[:n] >= rows.limit[:n]
        context = rows.prompt[:n] + rows.made[:n] >= self._source.config.context
        done = np.flatnonzero(eos | stop | length | context)
        out = []
        for row in done.tolist():
            why = Stop.EOS if eos[row] else Stop.TOKEN if stop[row] else Stop.LENGTH if length[row] else Stop.CONTEXT
            out.append(self._take(row, why))
        self._remove(done)
        return out

    def _take(self, row: int, why: Stop) -> tuple[int, Completion]:
        """The completion of a row."""
        rows, made = self._rows, int(self._rows.made[row])
        flight = rows.flight[row]
        assert flight is not None
        raw = rows.raw[row, :made].copy() if rows.raw_wanted[row] else None
        tokens, logprobs, version = rows.tokens[row, :made].copy(), rows.logprobs[row, :made].copy(), rows.version[row, :made].copy()
        self._in_flight.discard(flight.request.id)
        return flight.serial, Completion(flight.request.id, tokens, why, logprobs, raw, version)

    def _unread(self, flight: _Flight, why: Stop) -> tuple[int, Completion]:
        """The completion of a request that never got a row."""
        self._in_flight.discard(flight.request.id)
        none, nothing = np.zeros(0, np.int32), np.zeros(0, np.float32)
        raw = nothing if "raw" in flight.request.record else None
        return flight.serial, Completion(flight.request.id, none, why, nothing, raw, none)

    def _remove(self, gone: np.ndarray) -> None:
        """Takes rows out; the last rows move into the holes."""
        if len(gone) == 0:
            return
        rows = self._rows
        left = rows.count - len(gone)
        holes = gone[gone < left]
        tail = np.setdiff1d(np.arange(left, rows.count), gone, assume_unique=True)
        if len(holes):
            rows.move(tail, holes)
            self._cache.fork(torch.from_numpy(tail), torch.from_numpy(holes))
        for slot in range(left, rows.count):
            self._cache.free(slot)
            rows.flight[slot] = None
        rows.count = left

    def _abort(self) -> list[tuple[int, Completion]]:
        """Takes out what was cancelled."""
        if not self._cancelled:
            return []
        rows, out = self._rows, []
        gone = [i for i in range(rows.count) if (f := rows.flight[i]) is not None and f.request.id in self._cancelled]
        out += [self._take(row, Stop.ABORTED) for row in gone]
        self._remove(np.array(gone, np.int64))
        out += [self._unread(f, Stop.ABORTED) for f in self._waiting if f.request.id in self._cancelled]
        self._waiting = deque(f for f in self._waiting if f.request.id not in self._cancelled)
        self._cancelled = set()
        return out

    def _admit(self, hidden: list[Tensor]) -> list[tuple[int, Completion]]:
        """Gives rows to waiting requests and reads their prompts, each distinct one once; appends their last hidden states."""
        rows, context = self._rows, self._source.config.context
        out: list[tuple[int, Completion]] = []
        new: list[_Flight] = []
        while self._waiting and rows.count + len(new) < self._slots:
            flight = self._waiting.popleft()
            if len(flight.request.ids) >= context:
                out.append(self._unread(flight, Stop.CONTEXT))
            else:
                new.append(flight)
        if not new:
            return out
        first = rows.count
        rows.room(first + len(new), max(f.request.sampling.max_new for f in new), max(len(f.request.sampling.stop) for f in new))
        self._cache.reserve(first + len(new), 0)
        leaders: dict[tuple[int, ...], int] = {}
        follow = [leaders.setdefault(tuple(int(i) for i in f.request.ids), rows.add(f)) for f in new]
        prompts = list(leaders.items())
        last = torch.zeros(first + len(new), dtype=torch.long)  # row → place of its prompt's last hidden state
        states, begin = [], 0
        while begin < len(prompts):
            end, tokens = begin, 0
            while end < len(prompts) and (end == begin or tokens + len(prompts[end][0]) <= PREFILL):
                tokens += len(prompts[end][0])
                end += 1
            part = prompts[begin:end]
            ids = torch.tensor([i for prompt, _ in part for i in prompt], device=self._device)
            sizes = torch.tensor([len(prompt) for prompt, _ in part])
            seg = torch.repeat_interleave(torch.arange(len(part)), sizes).to(self._device)
            h = self._model(ids, seg, cache=self._cache.at([row for _, row in part]))
            states.append(h[(sizes.cumsum(0) - 1).to(self._device)])
            last[[row for _, row in part]] = torch.arange(begin, end)
            begin = end
        src, dst = torch.tensor(follow), torch.arange(first, rows.count)
        copies = src != dst
        self._cache.fork(src[copies], dst[copies])
        hidden.append(torch.cat(states)[last[src].to(self._device)])
        return out

    @torch.no_grad()
    def score(self, seqs: Sequence[Sequence[int]], temperature: float = 1.0, top: int = 0) -> list[Scores]:
        """Log-probabilities of given sequences under softmax(logits / temperature). UsageError for an empty or too long one."""
        config = self._source.config
        for i, seq in enumerate(seqs):
            if not 0 < len(seq) <= config.context:
                raise UsageError(f"sequence {i} has {len(seq)} tokens; this model scores 1 to {config.context}")
        out: list[Scores] = []
        begin = 0
        while begin < len(seqs):
            end, tokens = begin, 0
            while end < len(seqs) and (end == begin or tokens + len(seqs[end]) <= PREFILL):
                tokens += len(seqs[end])
                end += 1
            out += self._score(seqs[begin:end], temperature, top)
            begin = end
        return out

    def _score(self, seqs: Sequence[Sequence[int]], temperature: float, top: int) -> list[Scores]:
        sizes = [len(s) for s in seqs]
        ids = torch.from_numpy(np.concatenate([np.asarray(s, np.int64) for s in seqs])).to(self._device)
        seg = torch.repeat_interleave(torch.arange(len(seqs)), torch.tensor(sizes)).to(self._device)
        target = torch.cat((ids[1:], ids[:1]))  # column t speaks of ids[t + 1]; the last of a segment is thrown away below
        logprobs, best, best_ids = [], [], []
        with self._autocast():
            hidden = self._model(ids, seg)
            for part, wanted in zip(hidden.split(LOGITS), target.split(LOGITS)):
                lp = torch.log_softmax(self._model.logits(part).float() / temperature, -1)
                logprobs.append(lp.gather(1, wanted[:, None])[:, 0])
                if top:
                    value, index = lp.topk(top, -1)
                    best.append(value)
                    best_ids.append(index)
        flat = torch.cat(logprobs).cpu().numpy()
        if not np.isfinite(flat).all():
            raise FloatingPointError(f"log-probabilities are not finite (weight version {self._version})")
        tops = torch.cat(best).cpu().numpy() if top else None
        ids_of = torch.cat(best_ids).cpu().numpy().astype(np.int32) if top else None
        out, at = [], 0
        for n in sizes:
            piece = slice(at, at + n - 1)
            given = np.concatenate((np.zeros(1, np.float32), flat[piece]))
            if tops is None or ids_of is None:
                out.append(Scores(given, None, None))
            else:
                ranked = np.concatenate((np.full((1, top), -1, np.int32), ids_of[piece]))
                out.append(Scores(given, ranked, np.concatenate((np.zeros((1, top), np.float32), tops[piece]))))
            at += n
        return out

    def load(self, weights: Weights, version: int) -> None:
        """Takes new weights, from a folder or from memory; requests in flight go on with the caches they have."""
        if version <= self._version:
            raise UsageError(f"weight version {version} does not rise: the engine already has {self._version}")
        copy_into(self._source, tensors(weights), family_for(self._source.config))
        self._version = version
        self._refresh()
