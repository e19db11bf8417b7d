"""Charts as numbers: where bars begin and end, and round ticks beside them. The templates draw them as SVG.

Bars stand in a box that is stretched to the width of the page, 10 units wide a bar and HEIGHT high, so that text beside
them keeps its size on a phone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import ROUND_CEILING, Decimal, localcontext
from typing import NamedTuple

HEIGHT = 1000  # units of the box of a chart
LOW = 24  # units of the box of a small one
_ROUND = (Decimal(1), Decimal(2), Decimal("2.5"), Decimal(5), Decimal(10))
_ZERO = Decimal(0)


class Axis(NamedTuple):
    """The values at round ticks, 0 first; the last is the top of the chart."""

    ticks: Sequence[Decimal]

    @property
    def top(self) -> Decimal:
        """The value at the top."""
        return self.ticks[-1]

    def height(self, value: Decimal, of: int = HEIGHT) -> int:
        """How high a value stands, in units of a box."""
        return int(value * of / self.top)


def axis_to(most: Decimal, *, whole: bool = False, steps: int = 4) -> Axis:
    """The axis of values from 0 to `most`, with some `steps` round steps. whole: of values that have no fraction."""
    with localcontext(prec=100):
        rough = most / steps
        scale = Decimal(1).scaleb(rough.adjusted()) if rough else Decimal(1)
        step = next(scale * factor for factor in _ROUND if scale * factor >= rough)
        if whole:
            step = max(step.to_integral_value(ROUND_CEILING), Decimal(1))
        count = max(int((most / step).to_integral_value(ROUND_CEILING)), 1)
        return Axis([step * number for number in range(count + 1)])


def stacked(series: Sequence[Sequence[Decimal]], axis: Axis) -> Iterator[str]:
    """The path of each series: its part of each bar, standing on those of the series before it."""
    below = [_ZERO] * max(map(len, series), default=0)
    for values in series:
        above = [base + value for base, value in zip(below, values, strict=True)]
        yield "".join(
            f"M{position * 10 + 1}.5 {HEIGHT - start}h7V{HEIGHT - end}h-7z"
            for position, (start, end) in enumerate(
                (axis.height(base), axis.height(value)) for base, value in zip(below, above, strict=True)
            )
            if end > start
        )
        below = above


def small(values: Sequence[Decimal]) -> str:
    """The path of small bars, each at least a unit high where there is something, on a scale of their own."""
    most = max(values, default=_ZERO)
    if not most:
        return ""
    return "".join(
        f"M{position * 4} {LOW}v-{max(int(value * LOW / most), 1)}h3V{LOW}z"
        for position, value in enumerate(values)
        if value
    )
