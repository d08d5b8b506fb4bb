"""Two ways of the same work, timed in turns in one process."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

WARM_UP, FEWEST, MOST = 3, 10, 200
BUDGET_S = 2.0


def side_by_side(before: Callable[[int], Any], after: Callable[[int], Any], *, most: int = MOST) -> dict[str, Any]:
    """Milliseconds of one call of each, in turns so that a busy machine hits both; call n gets n, and both the same.

    {before, after}: median and quartiles (`q1`, `q3`) over `runs` calls, which end after `most`, or after about
    two seconds, but not below 10.
    """
    for n in range(WARM_UP):
        before(n)
        after(n)
    times: tuple[list[float], list[float]] = ([], [])
    started = time.perf_counter()
    while len(times[0]) < max(most, FEWEST):
        if len(times[0]) >= FEWEST and time.perf_counter() - started > BUDGET_S:
            break
        for call, kept in zip((before, after), times):
            begun = time.perf_counter()
            call(len(times[1]))
            kept.append(1000 * (time.perf_counter() - begun))
    return {"before": spread(times[0]), "after": spread(times[1])}


def spread(values: Sequence[float]) -> dict[str, Any]:
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3, "runs": len(values)}
