"""Generalised linear heads on fixed features: what a head is, and full-batch training by L-BFGS or, for numbers alone, in closed form.

    L = 1/n Σ_i Σ_h w_ih ℓ_h(η_ih, t_ih) + l2/2 (‖W‖² + ‖V‖²),   η = z W + b,   z = x, or max(0, x V + c)

Source: ridge regression: Hoerl, Kennard 1970; L-BFGS: Byrd, Lu, Nocedal, Zhu 1995 (scipy).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from upslope.data.classify import linear
from upslope.data.classify.linear import ANY, F32, I64, NUMBER, ONE

KINDS = {"one": ONE, "any": ANY, "number": NUMBER}
F64 = np.float64


class Head(NamedTuple):
    """name; kind: one of the classes, any of them, or a number; classes: their names, for a number its own name alone."""

    name: str
    kind: Literal["one", "any", "number"]
    classes: tuple[str, ...]


class Layout(NamedTuple):
    """Where heads lie among the outputs: head h is the columns bounds[h] : bounds[h + 1]; kinds: as `linear` numbers them."""

    bounds: I64
    kinds: I64

    @classmethod
    def of(cls, heads: Sequence[Head]) -> Layout:
        """The heads side by side."""
        sizes = [0, *(len(h.classes) for h in heads)]
        return cls(np.cumsum(np.array(sizes, np.int64)), np.array([KINDS[h.kind] for h in heads], np.int64))


class Weights(NamedTuple):
    """matrix (d, k), bias (k,); hidden (m, d), hidden_bias (d,), where there is a hidden layer, else (0, d) and (0,)."""

    matrix: F32
    bias: F32
    hidden: F32
    hidden_bias: F32

    def __call__(self, x: F32, layout: Layout) -> F32:
        """Means p (n, k) of inputs x (n, m); a row's bits depend on its input alone."""
        if self.hidden_bias.size:
            x = np.maximum(linear.affine(x, self.hidden, self.hidden_bias), np.float32(0))
        eta = linear.affine(x, self.matrix, self.bias) if self.matrix.size else x + self.bias
        linear.link(eta, layout.bounds, layout.kinds)
        return eta


def objective(flat: Any, x: Any, target: Any, weight: Any, layout: Layout, hidden: int, l2: float) -> tuple[float, Any]:
    """(L, ∂L/∂flat) in float64. flat: matrix, bias, hidden, hidden_bias, one after another; x: (n, m)."""
    n, k = target.shape
    matrix, bias, inner, inner_bias = unpack(flat, x.shape[1], k, hidden)
    z = np.maximum(x @ inner + inner_bias, 0) if hidden else x
    eta = z @ matrix + bias
    mean, total = np.empty_like(eta), 0.0
    for h, kind in enumerate(layout.kinds):
        at = slice(layout.bounds[h], layout.bounds[h + 1])
        e, t, w = eta[:, at], target[:, at], weight[:, h]
        if kind == ONE:
            lse = e.max(axis=1, keepdims=True)
            lse = lse + np.log(np.exp(e - lse).sum(axis=1, keepdims=True))
            mean[:, at] = np.exp(e - lse)
            total += w @ (t * (lse - e)).sum(axis=1)
        elif kind == ANY:
            mean[:, at] = 1 / (1 + np.exp(-np.clip(e, -80, 80)))
            total += w @ (np.logaddexp(0, e) - t * e).sum(axis=1)
        else:
            mean[:, at] = e
            total += w @ (0.5 * (e - t) ** 2).sum(axis=1)
    back = (mean - target) * np.repeat(weight, np.diff(layout.bounds), axis=1) / n
    parts = [z.T @ back + l2 * matrix, back.sum(axis=0)]
    if hidden:
        behind = (back @ matrix.T) * (z > 0)
        parts += [x.T @ behind + l2 * inner, behind.sum(axis=0)]
    penalty = 0.5 * l2 * (float((matrix**2).sum()) + float((inner**2).sum()))
    return float(total) / n + penalty, np.concatenate([p.ravel() for p in parts])


def unpack(flat: Any, inputs: int, outputs: int, hidden: int) -> tuple[Any, Any, Any, Any]:
    """(matrix, bias, hidden, hidden_bias) as views of a flat vector."""
    width = hidden or inputs
    shapes = [(width, outputs), (outputs,), (inputs if hidden else 0, hidden), (hidden,)]
    ends = np.cumsum([0, *(int(np.prod(s)) for s in shapes)])
    matrix, bias, inner, inner_bias = (flat[a:b].reshape(s) for a, b, s in zip(ends, ends[1:], shapes))
    return matrix, bias, inner, inner_bias


def packed(flat: Any, inputs: int, outputs: int, hidden: int) -> Weights:
    """The same as float32 weights."""
    matrix, bias, inner, inner_bias = (np.ascontiguousarray(a, np.float32) for a in unpack(flat, inputs, outputs, hidden))
    return Weights(matrix, bias, inner, inner_bias)


def ridge(x: Any, target: Any, weight: Any, l2: float) -> Weights:
    """The minimum of L for number heads without a hidden layer: (X̃ᵀX̃ + l2·n·I) W = X̃ᵀỸ, X̃ and Ỹ centred, rows weighted.

    weight: (n,), the same for all heads. The bias is not penalised. UsageError is never raised: l2 = 0 takes the smallest solution.
    """
    x, target = x.astype(F64), target.astype(F64)
    w = weight.astype(F64)[:, None]
    mean_x, mean_y = (w * x).sum(axis=0) / w.sum(), (w * target).sum(axis=0) / w.sum()
    root = np.sqrt(w)
    a, b = root * (x - mean_x), root * (target - mean_y)
    gram = a.T @ a + l2 * len(x) * np.eye(x.shape[1])
    matrix = np.linalg.solve(gram, a.T @ b) if l2 > 0 else np.linalg.lstsq(a, b, rcond=None)[0]
    empty = np.zeros((0, 0), np.float32)
    return Weights(matrix.astype(np.float32), (mean_y - mean_x @ matrix).astype(np.float32), empty, np.zeros(0, np.float32))


class Split(NamedTuple):
    """What is learnt from or measured on. x: (n, m); target: (n, k); weight: (n, heads)."""

    x: F32
    target: F32
    weight: F32


def fit(
    train: Split, dev: Split, layout: Layout, *, hidden: int, l2: float, iterations: int, patience: int, rng: np.random.Generator
) -> Weights:
    """Heads on fixed features. Without a hidden layer L is convex and the start does not matter; with one, the weights that were
    best on `dev` are kept."""
    from scipy.optimize import minimize

    inputs, outputs = train.x.shape[1], train.target.shape[1]
    if not hidden and (layout.kinds == NUMBER).all() and (train.weight == train.weight[:, :1]).all():
        return ridge(train.x, train.target, train.weight[:, 0], l2)
    arrays = [(s.x.astype(F64), s.target.astype(F64), s.weight.astype(F64)) for s in (train, dev)]
    start = np.zeros(unpacked_size(inputs, outputs, hidden))
    if hidden:
        matrix, _, inner, _ = unpack(start, inputs, outputs, hidden)
        inner[:] = rng.normal(size=inner.shape) * np.sqrt(2 / inputs)
        matrix[:] = rng.normal(size=matrix.shape) * np.sqrt(1 / hidden)
    best, found, since, seen = np.inf, start.copy(), 0, 0

    def look(flat: Any) -> None:
        nonlocal best, found, since, seen
        seen += 1
        if seen % 10 == 0 or seen == iterations:
            value = objective(flat, *arrays[1], layout, hidden, 0.0)[0]
            since = since + 1 if value >= best else 0
            if value < best:
                best, found = value, flat.copy()
            if since >= patience:
                raise StopIteration

    stops = hidden and len(dev.x)
    options = {"maxiter": iterations, "gtol": 1e-8, "ftol": 1e-14, "maxcor": 20, "maxfun": 10 * iterations}
    args = (*arrays[0], layout, hidden, l2)
    end = minimize(objective, start, args, method="L-BFGS-B", jac=True, options=options, callback=look if stops else None).x
    if stops and objective(end, *arrays[1], layout, hidden, 0.0)[0] >= best:
        end = found
    return packed(end, inputs, outputs, hidden)


def unpacked_size(inputs: int, outputs: int, hidden: int) -> int:
    """The length of `flat`."""
    return (hidden or inputs) * outputs + outputs + (inputs * hidden + hidden if hidden else 0)
