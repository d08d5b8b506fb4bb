"""Scatter panels as inline SVG: η of every target class, and three classes in the plane of the projection."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hf_lskd.study.charts import Scale, rounded, svg, text_at


@dataclass(frozen=True)
class Cloud:
    """Points of one class: `solid` ones as dots, `open` ones as small crosses, and a star at the centroid."""

    solid: Sequence[tuple[float, float]]
    open: Sequence[tuple[float, float]]
    star: tuple[float, float] | None


def quadrant_panel(
    title: str, description: str, points: Sequence[tuple[float, float]], x_reach: float, y_reach: float
) -> str:
    """A dot a target class: η of S1 across, η of S2 up; the quadrant of systematic diffusion (S1 < 0 < S2) is shaded."""
    size, left, bottom, top = 200.0, 26.0, 30.0, 8.0
    x, y = Scale(-x_reach, x_reach, left, size - 8), Scale(-y_reach, y_reach, size - bottom, top)
    middle, base, end = (rounded(v) for v in (x(0), size - bottom, size - 8))
    zone = f'width="{rounded(x(0) - left)}" height="{rounded(y(0) - top)}"'
    parts = [
        f'<rect class="zone" x="{rounded(left)}" y="{rounded(top)}" {zone}/>',
        f'<path class="axis" d="M{rounded(left)} {rounded(y(0))}H{end}M{middle} {rounded(top)}V{base}"/>',
        f'<path class="dots s0" d="{_dots((x(_within(a, x_reach)), y(_within(b, y_reach))) for a, b in points)}"/>',
    ]
    for value, anchor in ((-x_reach, "start"), (x_reach, "end")):
        parts.append(text_at(x(value), size - bottom + 12, _tick(value), anchor, "tick"))
    parts += [text_at(left - 3, y(value) + 4, _tick(value), "end", "tick") for value in (-y_reach, y_reach)]
    parts.append(text_at((left + size - 8) / 2, size - 4, "η S1 (similar), %", "middle", "tick"))
    parts.append(
        f'<text class="tick" text-anchor="middle" transform="translate(11 {rounded((top + size - bottom) / 2)}) rotate(-90)">'
        "η S2, %</text>"
    )
    return svg(title, description, size, size, parts)


def projection_panel(
    title: str, description: str, clouds: Sequence[Cloud], box: tuple[float, float, float, float]
) -> str:
    """Clouds of three classes in the plane; `box` = (x low, x high, y low, y high) is the same for a whole row."""
    width = 200.0
    across, up = (box[1] - box[0]) or 1.0, (box[3] - box[2]) or 1.0
    height = min(240.0, max(110.0, (width - 16) * up / across + 16))
    unit = min((width - 16) / across, (height - 16) / up)  # one unit for both axes: distances keep their proportion
    centre = ((box[0] + box[1]) / 2, (box[2] + box[3]) / 2)

    def place(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(width / 2 + (a - centre[0]) * unit, height / 2 - (b - centre[1]) * unit) for a, b in points]

    parts = [
        f'<rect class="frame" x="0.5" y="0.5" width="{rounded(width - 1)}" height="{rounded(height - 1)}" rx="4"/>'
    ]
    for index, cloud in enumerate(clouds):
        parts.append(f'<path class="dots k{index}" d="{_dots(place(cloud.solid))}"/>')
        parts.append(f'<path class="pluses k{index}" d="{_pluses(place(cloud.open))}"/>')
    for index, cloud in enumerate(clouds):
        if cloud.star:
            parts.append(_star(*place([cloud.star])[0], index))
    return svg(title, description, width, height, parts)


def _dots(points: Iterable[tuple[float, float]]) -> str:
    return "".join(f"M{rounded(x)} {rounded(y)}h0" for x, y in points)


def _pluses(points: Iterable[tuple[float, float]]) -> str:
    return "".join(f"M{rounded(x - 2.2)} {rounded(y)}h4.4m-2.2-2.2v4.4" for x, y in points)


def _star(x: float, y: float, index: int) -> str:
    radii = (7.5, 3.1)
    corners = [
        f"{rounded(x + radii[i % 2] * math.sin(i * math.pi / 5))} {rounded(y - radii[i % 2] * math.cos(i * math.pi / 5))}"
        for i in range(10)
    ]
    return f'<path class="star k{index}" d="M{"L".join(corners)}z"/>'


def _within(value: float, reach: float) -> float:
    return max(-reach, min(reach, value))


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", "−")
