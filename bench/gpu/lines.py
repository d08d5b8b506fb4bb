"""The lines that a part gives: results by name, printed as JSON."""

import statistics
from typing import Any

Line = dict[str, Any]


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[over], seconds[under]))


def short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def kernel_state() -> str:
    """Whether our Triton kernel was what ran."""
    from hf_lskd import losses_triton

    if losses_triton._distrusted:
        return f"not used: {losses_triton._distrusted[0]}"
    return f"used, {len(losses_triton._trusted)} kinds checked" if losses_triton._trusted else "not asked for"
