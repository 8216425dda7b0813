#!/bin/sh
# Sets up .venv with upslope and the tested versions of what it needs. WHAT is "." or ".[dev]".
# A torch that is already in the environment (any ≥ 2.11) is never replaced. Where a plain `pip install torch` would bring
# a build for another device than you want, install torch into .venv first, or set TORCH_INDEX to an index that has yours.
set -eu
what=${1:-.}
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
python=.venv/bin/python
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "upslope needs Python 3.11 or newer; set PYTHON=python3.11" >&2; exit 1; }
constraints=.venv/constraints.txt
if "$python" -c 'import torch, sys; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11))' 2>/dev/null; then
  grep -v '^torch==' constraints.txt > "$constraints"
else
  cp constraints.txt "$constraints"
  if [ -n "${TORCH_INDEX:-}" ]; then
    "$python" -m pip install --quiet --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"
  fi
fi
echo "setting up .venv ($what), once"
if command -v uv >/dev/null 2>&1 && [ -n "${UPSLOPE_UV:-}" ]; then
  uv pip install --quiet --python "$python" -c "$constraints" -e "$what"
else
  "$python" -m pip install --quiet --disable-pip-version-check -c "$constraints" -e "$what"
fi
touch .venv/.core
