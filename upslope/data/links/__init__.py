"""Links between copies: exact, MinHash, skeleton and semantic; one file per kind. A class of one's own is named by its import path."""

from upslope.data.links.exact import Exact
from upslope.data.links.graph import components
from upslope.data.links.minhash import MinHash
from upslope.data.links.semantic import Semantic
from upslope.data.links.skeleton import Skeleton
from upslope.data.protocol import Link as AnyLink

__all__ = ["AnyLink", "Exact", "MinHash", "Semantic", "Skeleton", "components"]
