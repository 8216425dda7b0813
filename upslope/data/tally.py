"""Counting a decision in one pass: what each rule took, alone, first, and of each group."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@nb.njit(cache=True)
def tally(failed: NDArray[np.bool_], codes: I32, groups: int, size: I32) -> tuple[I64, I64, I64, NDArray[np.bool_]]:
    """failed: (rules, n), which documents fail each rule. codes: (kinds, n), the group of each document in each division, below `groups`.
    size: (n,) bytes.

    Returns (rules, 4): failed, failed alone, failed first, bytes of those; (kinds, groups, rules, 2): failed, alone; (kinds, groups, 2):
    documents in, and left; and which are left, (n,).
    """
    rules, n = failed.shape
    kinds = codes.shape[0]
    by_rule = np.zeros((rules, 4), np.int64)
    by_group = np.zeros((kinds, groups, rules, 2), np.int64)
    docs = np.zeros((kinds, groups, 2), np.int64)
    alive = np.zeros(n, np.bool_)
    for i in range(n):
        count = 0
        first = -1
        for r in range(rules):
            if failed[r, i]:
                if count == 0:
                    first = r
                count += 1
                by_rule[r, 0] += 1
                for k in range(kinds):
                    by_group[k, codes[k, i], r, 0] += 1
        for k in range(kinds):
            docs[k, codes[k, i], 0] += 1
        if count == 0:
            alive[i] = True
            for k in range(kinds):
                docs[k, codes[k, i], 1] += 1
            continue
        by_rule[first, 2] += 1
        by_rule[first, 3] += size[i]
        if count == 1:
            by_rule[first, 1] += 1
            for k in range(kinds):
                by_group[k, codes[k, i], first, 1] += 1
    return by_rule, by_group, docs, alive


@nb.njit(cache=True)
def kinds(size: I32, code: I32, math: I32, table: I32) -> I32:
    """What a document is: 2 = math where a hundredth of its bytes is formulas on lines of their own, else 1 = code or 3 = table where a
    quarter is, else 0 = prose."""
    out = np.zeros(size.size, np.int32)
    for i in range(size.size):
        if math[i] > 0 and np.int64(math[i]) * 100 >= size[i]:
            out[i] = 2
        elif code[i] > 0 and np.int64(code[i]) * 4 >= size[i]:
            out[i] = 1
        elif table[i] > 0 and np.int64(table[i]) * 4 >= size[i]:
            out[i] = 3
    return out
