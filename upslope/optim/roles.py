"""The role of a parameter decides its optimizer and its decay; names and shapes decide the role."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Role = Literal["embedding", "head", "vector", "matrix"]


def role(name: str, parameter: Tensor) -> Role:
    """embedding: lookup tables; head: output matrix and scalar heads; vector: norms, biases, gains, magnitudes; matrix: the rest.

    A 3-D parameter is a stack of matrices (experts): each is a matrix of its own. A tied head is an embedding.
    """
    words = name.replace("_", ".").split(".")
    if words[-1] == "magnitude":  # of DoRA, (E, out) for a stack of experts
        return "vector"
    if parameter.ndim >= 2 and ("embed" in words or "embedding" in words or "embeddings" in words):
        return "embedding"
    if "head" in words:
        return "head"
    return "matrix" if parameter.ndim >= 2 else "vector"


def decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: never to embeddings, nor to anything 1-D."""
    return parameter.ndim >= 2 and role(name, parameter) not in ("embedding", "vector")
