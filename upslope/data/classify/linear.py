"""The fastText-style model: hashed n-grams of words and characters, the mean of their rows in a table, generalised linear heads.

    x = 1/n Σ_f E[f],   η = x W + b,   p = link(η)          (dim = 0: η = x + b, so E is the weight matrix of a logistic regression)

Heads are slices of η: `ONE` of its classes (softmax), `ANY` of them (a sigmoid each), or a `NUMBER` (identity). With these links
∂loss/∂η = p − target, whichever the head. A missing target has weight 0.

Source: Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification"; canonical links: McCullagh, Nelder 1989.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numba as nb
import numpy as np
from numpy.typing import NDArray

from upslope.data.folding import U8, U32, mix, words_into

F32: TypeAlias = NDArray[np.float32]
I32: TypeAlias = NDArray[np.int32]
I64: TypeAlias = NDArray[np.int64]

ONE, ANY, NUMBER = range(3)
LONGEST = 8
"""The longest run of characters."""


@nb.njit(cache=True)
def features(data: U8, start: int, end: int, kinds: U32, grams: int, low: int, high: int, bits: int) -> I32:
    """Rows of the table for the text data[start:end]: all runs of 1…grams words, and all runs of low…high characters (none if high = 0),
    (n,) int32.

    Words as in `data.folding`, of which `kinds` is the table. In runs of characters ASCII is lower-cased, and a stretch of blanks is one.
    """
    shift = np.uint64(64 - bits)
    hashes = np.empty(end - start, np.uint64)
    size = words_into(data, start, end, kinds, hashes, np.empty(0, np.int32))
    out = np.empty(size * grams + (end - start) * (high - low + 1 if high else 0), np.int32)
    count = 0
    for i in range(size):
        h = np.uint64(0)
        for j in range(i, min(i + grams, size)):
            h = mix(h * np.uint64(0x9E3779B97F4A7C15) + hashes[j])
            out[count] = np.int32(h >> shift)
            count += 1
    if high:
        last = np.zeros(LONGEST, np.uint64)  # a ring of the latest characters
        seen, i = 0, start
        while i < end:
            c = data[i]
            code = np.uint64(c + 32 if 65 <= c <= 90 else c)
            i += 1
            if c <= 32:
                code = np.uint64(32)
                while i < end and data[i] <= 32:
                    i += 1
            while i < end and (data[i] & 0xC0) == 0x80:
                code = (code << np.uint64(8)) | np.uint64(data[i])
                i += 1
            last[seen % LONGEST] = code
            seen += 1
            h = np.uint64(0x51ED270B)  # apart from the words' hashes
            for n in range(1, min(high, seen) + 1):
                h = mix(h * np.uint64(0x9E3779B97F4A7C15) + last[(seen - n) % LONGEST])
                if n >= low:
                    out[count] = np.int32(h >> shift)
                    count += 1
    return out[:count]


@nb.njit(cache=True)
def _cut(data: U8, low: int, high: int, limit: int) -> int:
    """The end of a text of which at most `limit` bytes are looked at (0 = all), never inside a character."""
    if limit and high - low > limit:
        high = low + limit
        while high > low and (data[high] & 0xC0) == 0x80:
            high -= 1
    return high


@nb.njit(cache=True)
def bags(data: U8, offsets: I64, kinds: U32, grams: int, low: int, high: int, bits: int, limit: int) -> tuple[I64, I32, F32]:
    """Features of all texts, for training: text i has ids[starts[i] : starts[i + 1]], and (Σ_f count_f²) / n² at i of the third."""
    n = offsets.size - 1
    starts = np.zeros(n + 1, np.int64)
    square = np.zeros(n, np.float32)
    ids = np.empty(1024, np.int32)
    for i in range(n):
        found = features(data, offsets[i], _cut(data, offsets[i], offsets[i + 1], limit), kinds, grams, low, high, bits)
        end = starts[i] + found.size
        if end > ids.size:
            grown = np.empty(max(end, 2 * ids.size), np.int32)
            grown[: starts[i]] = ids[: starts[i]]
            ids = grown
        ids[starts[i] : end] = found
        starts[i + 1] = end
        found.sort()
        total, first = 0.0, 0
        for f in range(1, found.size + 1):
            if f == found.size or found[f] != found[first]:
                total += float(f - first) ** 2
                first = f
        square[i] = total / max(1, found.size) ** 2
    return starts, ids[: starts[n]], square


@nb.njit(cache=True)
def pool(starts: I64, ids: I32, table: F32) -> F32:
    """The mean row of each bag, (n, dim); zeros for an empty one."""
    out = np.zeros((starts.size - 1, table.shape[1]), np.float32)
    for i in range(out.shape[0]):
        row = out[i]
        for k in range(starts[i], starts[i + 1]):
            row += table[ids[k]]
        if starts[i + 1] > starts[i]:
            row /= np.float32(starts[i + 1] - starts[i])
    return out


@nb.njit(cache=True)
def pool_texts(
    data: U8, offsets: I64, kinds: U32, grams: int, low: int, high: int, bits: int, limit: int, table: F32
) -> F32:  # fmt: skip
    """`pool` of `bags`, text by text: the same bits, and no memory for the bags."""
    out = np.zeros((offsets.size - 1, table.shape[1]), np.float32)
    for i in range(out.shape[0]):
        found = features(data, offsets[i], _cut(data, offsets[i], offsets[i + 1], limit), kinds, grams, low, high, bits)
        row = out[i]
        for k in range(found.size):
            row += table[found[k]]
        if found.size:
            row /= np.float32(found.size)
    return out


@nb.njit(cache=True)
def affine(x: F32, weight: F32, bias: F32) -> F32:
    """x W + b, (n, k): each row summed in the order of the inputs, so that a row's bits do not depend on the batch that it is in."""
    out = np.empty((x.shape[0], bias.size), np.float32)
    for i in range(x.shape[0]):
        out[i] = bias
        for j in range(x.shape[1]):
            out[i] += x[i, j] * weight[j]
    return out


@nb.njit(cache=True)
def link(eta: F32, bounds: I64, kinds: I64) -> None:
    """η → p in place; (n, k). Head h is the columns bounds[h] : bounds[h + 1], of kind kinds[h]."""
    for i in range(eta.shape[0]):
        for h in range(kinds.size):
            low, high = bounds[h], bounds[h + 1]
            if kinds[h] == ONE:
                top = eta[i, low]
                for j in range(low + 1, high):
                    top = max(top, eta[i, j])
                total = 0.0
                for j in range(low, high):
                    e = math.exp(eta[i, j] - top)
                    total += e
                    eta[i, j] = e
                for j in range(low, high):
                    eta[i, j] /= total
            elif kinds[h] == ANY:
                for j in range(low, high):
                    eta[i, j] = 1.0 / (1.0 + math.exp(-min(max(eta[i, j], -80.0), 80.0)))


@nb.njit(cache=True)
def loss(mean: F32, target: F32, weight: F32, bounds: I64, kinds: I64) -> float:
    """The mean over rows of Σ_h weight_h · (cross-entropy in nats, or half the squared error)."""
    total = 0.0
    for i in range(mean.shape[0]):
        for h in range(kinds.size):
            part = 0.0
            for j in range(bounds[h], bounds[h + 1]):
                p, t = float(mean[i, j]), float(target[i, j])
                if kinds[h] == NUMBER:
                    part += 0.5 * (p - t) ** 2
                else:
                    part -= t * math.log(max(p, 1e-12))
                    if kinds[h] == ANY:
                        part -= (1.0 - t) * math.log(max(1.0 - p, 1e-12))
            total += weight[i, h] * part
    return total / max(1, mean.shape[0])


@nb.njit(cache=True)
def sgd(
    starts: I64, ids: I32, square: F32, target: F32, weight: F32, bounds: I64, kinds: I64,
    order: I64, table: F32, matrix: F32, bias: F32, lr: float, done: int, total: int,
) -> None:  # fmt: skip
    """One pass of stochastic gradient descent over the texts in `order`, in place; the rate falls from lr at step 0 to 0 at step `total`.

    matrix: (dim, k), or (0, k) for the model without an embedding. The step of the table is normalised: rows move by
    lr · ∂loss/∂E / ‖a‖², x = Σ_f a_f E[f], so that x moves by lr · ∂loss/∂x however long the text is and however often it repeats itself.
    square: ‖a‖² of each text. Source: normalised least mean squares: Nagumo, Noda 1967.
    """
    k = bias.size
    flat = matrix.shape[0] == 0
    x = np.empty(table.shape[1], np.float32)
    eta = np.empty((1, k), np.float32)
    back = np.empty(table.shape[1], np.float32)
    for s in range(order.size):
        i = order[s]
        low, high = starts[i], starts[i + 1]
        if low == high:
            continue
        rate = np.float32(lr * (1.0 - (done + s) / total))
        x[:] = np.float32(0.0)
        for f in range(low, high):
            x += table[ids[f]]
        x /= np.float32(high - low)
        if flat:
            eta[0] = x + bias
        else:
            eta[0] = bias
            for j in range(x.size):
                eta[0] += x[j] * matrix[j]
        link(eta, bounds, kinds)
        for h in range(kinds.size):
            for j in range(bounds[h], bounds[h + 1]):
                eta[0, j] = weight[i, h] * (eta[0, j] - target[i, j]) * rate
        if flat:
            back[:] = eta[0]
        else:
            for j in range(x.size):
                total_j = np.float32(0.0)
                for c in range(k):
                    total_j += matrix[j, c] * eta[0, c]
                back[j] = total_j
                for c in range(k):
                    matrix[j, c] -= x[j] * eta[0, c]
        bias -= eta[0]
        back /= square[i] * np.float32(high - low)
        for f in range(low, high):
            table[ids[f]] -= back
