"""Text for people: escaped, short numbers, shares with their interval and n. Pure functions."""

from __future__ import annotations

import html
import math
import re
from typing import Any

# Characters that XML forbids, and the ones that reorder text on screen (a name must not be able to hide what it says).
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def esc(text: Any) -> str:
    """Any value as text that is safe in HTML and SVG, inside elements and inside quoted attributes."""
    return html.escape(_UNPRINTABLE.sub("\ufffd", str(text)), quote=True)


def finite(value: Any) -> float | None:
    """The value as a finite float, or None (bools, text, NaN and infinities are not numbers here)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def number(value: Any, digits: int = 3) -> str:
    """A number with `digits` significant digits: 1,612 · 0.0041 · 2.67 · 1.8M · 3e-05; not finite → "not a number"."""
    x = finite(value)
    if x is None:
        return "not a number" if isinstance(value, float) else str(value)
    if x == 0:
        return "0"
    size = abs(x)
    if size >= 1e15 or size < 1e-4:
        return f"{x:.{max(0, digits - 1)}e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    if x == int(x) and size < 1e5:
        return f"{int(x):,}"
    for scale, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size >= scale * 0.9995 and (scale > 1e3 or size >= 1e4):
            return _plain(x / scale, digits) + unit
    return _plain(x, digits)


def _plain(x: float, digits: int) -> str:
    places = max(0, digits - 1 - math.floor(math.log10(abs(x)) + 1e-9))
    text = f"{x:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else f"{int(text):,}"


def percent(share: Any, digits: int = 1) -> str:
    """A share in [0, 1] as percent: "33.6 %"."""
    x = finite(share)
    return "not a number" if x is None else f"{100 * x:.{digits}f} %"


def seconds(value: Any) -> str:
    """A duration: "0.4 s", "67 s", "4 min 23 s", "2 h 10 min"."""
    x = finite(value)
    if x is None:
        return "—"
    if x < 0.1:
        return "< 0.1 s"
    if x < 10:
        return f"{x:.1f} s"
    if round(x) < 120:
        return f"{x:.0f} s"
    minutes, rest = divmod(round(x), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def size(value: Any) -> str:
    """Bytes on disk, in powers of 1,000."""
    x = finite(value)
    if x is None:
        return "—"
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if x >= scale:
            return f"{x / scale:.3g} {unit}"
    return f"{x:.0f} B"


def interval(low: Any, high: Any, scale: float = 100.0, digits: int = 1) -> str:
    """ "[29.3, 38.2]", or "" where there is no interval."""
    a, b = finite(low), finite(high)
    return "" if a is None or b is None else f"[{scale * a:.{digits}f}, {scale * b:.{digits}f}]"


def share(value: Any, low: Any = None, high: Any = None, n: Any = None) -> str:
    """A measured share with interval and n: "33.6 % [29.3, 38.2], n = 440"."""
    text = " ".join(x for x in (percent(value), interval(low, high)) if x)
    return f"{text}, n = {int(n):,}" if finite(n) is not None else text


def clip(text: Any, longest: int = 48) -> str:
    """The text, cut with an ellipsis (not escaped)."""
    value = str(text)
    return value if len(value) <= longest else value[: longest - 1] + "…"


def listing(items: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def counted(n: Any, one: str, many: str = "") -> str:
    """ "1 step", "3 steps"."""
    return f"{number(n)} {one if n == 1 else many or one + 's'}"


def tight(text: str) -> str:
    """The text with spaces that must not break a line: inside intervals, before units and around "n =" (not escaped)."""
    text = re.sub(r"(\d) (%|points\b)", "\\1\u00a0\\2", text)
    text = re.sub(r"n = (\d)", "n\u00a0=\u00a0\\1", text)
    return re.sub(r"\[[^\[\]]{1,24}\]", lambda m: m[0].replace(" ", "\u00a0"), text)


def shown(text: Any) -> str:
    """A result as safe HTML that breaks only between its parts: `esc(tight(text))`."""
    return esc(tight(str(text)))
