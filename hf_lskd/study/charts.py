"""Line charts and scatter panels as inline SVG: no script, no fonts of their own, colours from the page's CSS variables.

A series is told apart by colour, dash, marker and its name at the line's end, so none of them has to be seen alone.
Coordinates are rounded to a tenth of a unit: the same data give the same bytes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

MARKERS = ("circle", "square", "triangle", "diamond", "cross")
WIDTH, HEIGHT = 400.0, 262.0
LEFT, TOP, BOTTOM = 44.0, 24.0, 42.0
LINE_HEIGHT = 14.0


@dataclass(frozen=True)
class Mark:
    """A value with its interval (None without one) and the single values behind it."""

    value: float
    low: float | None = None
    high: float | None = None
    dots: tuple[float, ...] = ()


@dataclass(frozen=True)
class Series:
    """A named line: marks at categories (None where there is none)."""

    name: str
    marks: Sequence[Mark | None]


@dataclass(frozen=True)
class Curve:
    """A named line through points (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map from data to the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)


def line_chart(
    title: str,
    description: str,
    categories: Sequence[str],
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    limits: tuple[float, float] | None = None,
    detached: int = 0,
) -> str:
    """Values over equally spaced categories; the first `detached` ones are not joined with the rest.

    `limits` fixes the vertical axis, so that charts can be compared.
    """
    right = WIDTH - _label_room([s.name for s in series])
    low, high = limits or value_limits(series)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    step = (right - LEFT) / max(1, len(categories))
    centres = [LEFT + step * (i + 0.5) for i in range(len(categories))]
    parts = [_y_axis(y, right, y_label), _x_categories(categories, centres, x_label, right)]
    if detached and detached < len(categories):
        edge = LEFT + step * detached
        parts.append(
            f'<line class="split" x1="{rounded(edge)}" x2="{rounded(edge)}" y1="{rounded(TOP)}" y2="{rounded(HEIGHT - BOTTOM)}"/>'
        )
    ends = []
    for index, one in enumerate(series):
        shift = (index - (len(series) - 1) / 2) * min(9.0, step / (len(series) + 1))
        parts.append(_series(one, index, [c + shift for c in centres], y, detached))
        last = next((m for m in reversed(one.marks) if m), None)
        if last:
            ends.append((y(last.value), one.name, index))
    parts.append(_end_labels(ends, right + 5))
    return svg(title, description, WIDTH, HEIGHT, parts)


def curve_chart(
    title: str,
    description: str,
    curves: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    limits: tuple[float, float] | None = None,
    log: bool = False,
) -> str:
    """Lines over a numeric axis; `log` for a logarithmic vertical axis (values above 0 only)."""
    right = WIDTH - _label_room([c.name for c in curves])
    xs = [x for c in curves for x, _ in c.points] or [0.0, 1.0]
    low, high = limits or curve_limits(curves, log=log)
    x = Scale(min(xs), max(xs), LEFT + 6, right - 6)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP, log)
    ticks = nice_ticks(min(xs), max(xs), 5)
    ticks = [t for t in ticks if t.is_integer()] if max(xs) - min(xs) >= 2 else ticks  # whole epochs
    parts = [
        _y_axis(y, right, y_label),
        _x_categories([f"{t:g}" for t in ticks], [x(t) for t in ticks], x_label, right),
    ]
    ends = []
    for index, curve in enumerate(curves):
        if not curve.points:
            continue
        path = "L".join(f"{rounded(x(a))} {rounded(y(b))}" for a, b in curve.points)
        parts.append(f'<g class="s s{index % 6}"><path class="line" d="M{path}"/></g>')
        if len(curve.points) == 1:
            parts.append(
                f'<g class="s s{index % 6}">{_marker(index, x(curve.points[0][0]), y(curve.points[0][1]))}</g>'
            )
        ends.append((y(curve.points[-1][1]), curve.name, index))
    parts.append(_end_labels(ends, right + 5))
    return svg(title, description, WIDTH, HEIGHT, parts)


def value_limits(series: Iterable[Series], pad: float = 0.06) -> tuple[float, float]:
    """Vertical limits that hold every mark, interval and dot, with a little air."""
    marks = [m for s in series for m in s.marks if m]
    values = [v for m in marks for v in (m.value, m.low, m.high, *m.dots) if v is not None]
    return _padded(values, pad)


def curve_limits(curves: Iterable[Curve], *, log: bool = False) -> tuple[float, float]:
    """Vertical limits of curves; a logarithmic axis gets whole powers of ten at need."""
    values = [b for c in curves for _, b in c.points if b > 0 or not log]
    if log and values:
        return min(values) / 1.15, max(values) * 1.15
    return _padded(values, 0.06)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers between the limits (steps of 1, 2 or 5 times a power of ten)."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**p for p in powers for m in steps if low <= m * 10.0**p <= high]
        if len(ticks) <= 6:
            break
    return ticks if len(ticks) > 1 else [low, high]


def _padded(values: Sequence[float], pad: float) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    air = pad * (high - low) or max(1.0, 0.05 * abs(high))
    return low - air, high + air


def _series(one: Series, index: int, xs: Sequence[float], y: Scale, detached: int) -> str:
    parts, run = [], ""
    for i, (x, mark) in enumerate(zip(xs, one.marks, strict=True)):
        if mark is None or i < detached:
            run += "M" if run and not run.endswith("M") else ""
            continue
        run += (
            f"{'L' if run and not run.endswith('M') else 'M' if not run else ''}{rounded(x)} {rounded(y(mark.value))}"
        )
    parts.append(f'<path class="line" d="{run.rstrip("M")}"/>' if run.rstrip("M") else "")
    for x, mark in zip(xs, one.marks, strict=True):
        if mark is None:
            continue
        parts.append(
            "".join(f'<circle class="dot" cx="{rounded(x)}" cy="{rounded(y(d))}" r="1.9"/>' for d in mark.dots)
        )
        if mark.low is not None and mark.high is not None:
            top, bottom = rounded(y(mark.high)), rounded(y(mark.low))
            caps = f"M{rounded(x - 3.5)} {top}h7M{rounded(x - 3.5)} {bottom}h7"
            parts.append(f'<path class="bar" d="M{rounded(x)} {top}V{bottom}{caps}"/>')
        parts.append(_marker(index, x, y(mark.value)))
    return f'<g class="s s{index % 6}">{"".join(parts)}</g>'


def _marker(index: int, x: float, y: float) -> str:
    shape = MARKERS[index % len(MARKERS)]
    if shape == "circle":
        return f'<circle class="mark" cx="{rounded(x)}" cy="{rounded(y)}" r="4"/>'
    if shape == "square":
        return f'<rect class="mark" x="{rounded(x - 3.6)}" y="{rounded(y - 3.6)}" width="7.2" height="7.2"/>'
    if shape == "triangle":
        return f'<path class="mark" d="M{rounded(x)} {rounded(y - 4.8)}l4.6 8.2h-9.2z"/>'
    if shape == "diamond":
        return f'<path class="mark" d="M{rounded(x)} {rounded(y - 5)}l5 5l-5 5l-5 -5z"/>'
    return f'<path class="bar" d="M{rounded(x - 4)} {rounded(y - 4)}l8 8M{rounded(x + 4)} {rounded(y - 4)}l-8 8"/>'


def _y_axis(y: Scale, right: float, label: str) -> str:
    ticks = _log_ticks(y.low, y.high) if y.log else nice_ticks(y.low, y.high)
    digits = 0 if y.log else max(0, *(_decimals(t) for t in ticks)) if ticks else 0
    parts = [text_at(4, 11, label, "start", "name")]
    for tick in ticks:
        at = y(tick)
        text = f"{tick:.2g}" if y.log else f"{tick:.{digits}f}"
        parts.append(
            f'<line class="grid" x1="{rounded(LEFT)}" x2="{rounded(right)}" y1="{rounded(at)}" y2="{rounded(at)}"/>'
        )
        parts.append(text_at(LEFT - 6, at + 4, text.replace("-", "−"), "end", "tick"))
    return "".join(parts)


def _x_categories(categories: Sequence[str], centres: Sequence[float], label: str, right: float) -> str:
    base = HEIGHT - BOTTOM
    parts = [
        f'<line class="axis" x1="{rounded(LEFT)}" x2="{rounded(right)}" y1="{rounded(base)}" y2="{rounded(base)}"/>'
    ]
    parts += [text_at(c, base + 16, name, "middle", "tick") for name, c in zip(categories, centres, strict=True)]
    parts.append(text_at((LEFT + right) / 2, HEIGHT - 7, label, "middle", "name"))
    return "".join(parts)


def _end_labels(ends: Sequence[tuple[float, str, int]], x: float) -> str:
    """Names beside the lines' ends, moved apart where they would overlap and kept inside the drawing."""
    placed: list[tuple[float, str, int]] = []
    for at, name, index in sorted(ends):
        placed.append((max(at, placed[-1][0] + LINE_HEIGHT) if placed else at, name, index))
    overflow = placed[-1][0] - (HEIGHT - BOTTOM) if placed else 0.0
    if overflow > 0:
        limit = HEIGHT - BOTTOM
        for i in range(len(placed) - 1, -1, -1):
            at, name, index = placed[i]
            placed[i] = (min(at, limit), name, index)
            limit = placed[i][0] - LINE_HEIGHT
    texts = [text_at(x, at + 4, name, "start", f"end s{index % 6}") for at, name, index in placed]
    return "".join(texts)


def _label_room(names: Sequence[str]) -> float:
    return min(150.0, 12.0 + 6.9 * max((len(n) for n in names), default=0))


def svg(title: str, description: str, width: float, height: float, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {rounded(width)} {rounded(height)}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )


def text_at(x: float, y: float, text: str, anchor: str, css: str) -> str:
    return f'<text class="{css}" x="{rounded(x)}" y="{rounded(y)}" text-anchor="{anchor}">{escape(text)}</text>'


def _decimals(tick: float) -> int:
    return len(f"{tick:.10f}".rstrip("0").split(".")[1])


def rounded(value: float) -> str:
    """A coordinate to a tenth, without trailing zeros or a minus zero."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text
