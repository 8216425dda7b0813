"""table: the mean of static token vectors from a file, e.g. those of Model2Vec or WordLlama.

Source: Tulkens and van Dongen 2024 (Model2Vec); Miller 2024 (WordLlama).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from upslope.config import Source, UsageError
from upslope.data.embed import Embedder

if TYPE_CHECKING:
    import numpy as np


class Table(Embedder):
    """folder: holds tokenizer.json and one *.safetensors file. tensor: the matrix (tokens, dim) in it; "" takes the only one with two
    axes. dim: the first so many columns (for vectors trained to be cut, as Matryoshka's); 0 takes all."""

    kind: ClassVar[str] = "table"
    version: ClassVar[int] = 1

    folder: Source
    tensor: str = ""
    dim: int = Field(default=0, ge=0)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dim) float32. Token ids that the matrix lacks are left out."""
        import numpy as np

        from upslope.data.embed import normalised

        tokenizer, matrix = _load(str(self.folder.path()), self.folder.digest, self.tensor, self.dim)
        out = np.zeros((len(texts), matrix.shape[1]), np.float64)
        for i, encoding in enumerate(tokenizer.encode_batch(list(texts), add_special_tokens=False)):
            ids = np.array(encoding.ids, np.int64)
            ids = ids[ids < matrix.shape[0]]
            if ids.size:
                out[i] = matrix[ids].mean(axis=0, dtype=np.float64)
        return normalised(out)


@lru_cache(maxsize=2)
def _load(folder: str, digest: str | None, tensor: str, dim: int) -> tuple[Any, np.ndarray]:
    """(tokenizer, matrix (tokens, dim)). UsageError where the folder does not hold them."""
    from safetensors import safe_open
    from tokenizers import Tokenizer

    path = Path(folder)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if len(files) != 1 or not (path / "tokenizer.json").is_file():
        raise UsageError(
            f"table: {path.name!r} must be a folder with tokenizer.json and one *.safetensors file; it has {len(files)} of these\n"
            "way out: copy the two files into a folder of their own"
        )
    with safe_open(files[0], framework="np") as f:
        names = sorted(f.keys())
        flat = [n for n in names if len(f.get_slice(n).get_shape()) == 2]
        if tensor not in flat and (tensor or len(flat) != 1):
            raise UsageError(f"table: {files[0].name} has the matrices {', '.join(flat) or 'none'}; name one of them in `tensor`")
        matrix = f.get_tensor(tensor or flat[0])
    if dim > matrix.shape[1]:
        raise UsageError(f"table: dim = {dim}, but the vectors of {files[0].name} have {matrix.shape[1]} columns")
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, matrix[:, : dim or None]
