"""Numbers that callers hand in, checked: what is wrong is said in a sentence.

Only what the Rust core does not check itself, or answers with a ``TypeError``; which sizes and costs there
can be is its business.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from dualpipe_rs.errors import UsageError

#: The most microbatches that a search goes up to: beyond, each try takes too long to try them all.
MOST_TRIED = 4096


def whole(name: str, value: Any, least: int = 1, most: int = 1 << 32) -> int:
    """``value`` as an int; UsageError where it is no whole number from ``least`` to ``most``."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        bounds = f"at least {least}" if most == 1 << 32 else f"from {least} to {most}"
        raise UsageError(f"{name} is {shown(value)}; it is a whole number, {bounds}")
    return number


def shown(value: Any) -> str:
    """The value as an error shows it: not longer than it helps, and without failing itself."""
    try:
        text = repr(value)
    except Exception:
        return f"of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def amount(name: str, value: Any, what: str = "a finite number that is not negative") -> float:
    """``value`` as a float; UsageError where it is no finite number of at least 0."""
    try:
        number = math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise UsageError(f"{name} is {shown(value)}; it is {what}")
    return number
