"""A panel of a figure as inline SVG: axes, lines, points and words, coloured by the classes of the page around it.

A panel is drawn 360 units wide, so that its words can be read on a phone, and grows with the page. Colours are classes
(`ink`, `faint`, `s0` to `s7`), which the page's style gives a colour each in light and in dark.
"""

import math
from collections.abc import Callable, Sequence
from html import escape

from matplotlib.ticker import MaxNLocator

WIDTH = 360
SERIES = 8  # colours that the eye tells apart


class Panel:
    """One panel, drawn in the units of its data.

    Args:
      title: its heading, and its name for those who hear the page.
      x, y: the range of each axis; of an axis that runs downwards the larger number first.
      height: of the whole. left, bottom: room for the numbers and the words of the axes.
      log_x, log_y: whether an axis is logarithmic.
    """

    def __init__(
        self,
        title: str,
        x: tuple[float, float],
        y: tuple[float, float],
        height: float = 300,
        left: float = 44,
        bottom: float = 44,
        log_x: bool = False,
        log_y: bool = False,
    ):
        self.title, self.height = title, height
        self._left, self._right, self._top, self._bottom = left, WIDTH - 12, 30, height - bottom
        self._across, self._up = _scaled(x, log_x), _scaled(y, log_y)
        self._x, self._y = x, y
        self._parts: list[str] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns where a point lies in the picture."""
        x = self._left + self._across(x) * (self._right - self._left)
        return x, self._bottom - self._up(y) * (self._bottom - self._top)

    def x_axis(self, ticks: Sequence[float], label: str, told: Callable[[float], str] = "{:g}".format) -> None:
        """Draws the numbers and the name of the x axis, and a faint line up from each number."""
        for tick in ticks:
            x, _ = self.at(tick, self._y[0])
            self._line([(x, self._top), (x, self._bottom)], "grid")
            self._words(x, self._bottom + 15, told(tick), "middle")
        self._line([(self._left, self._bottom), (self._right, self._bottom)], "axis")
        self._words((self._left + self._right) / 2, self.height - 8, label, "middle", "name")

    def y_axis(self, ticks: Sequence[float], label: str, told: Callable[[float], str] = "{:g}".format) -> None:
        """Draws the numbers of the y axis, a faint line from each, and its name."""
        for tick in ticks:
            _, y = self.at(self._x[0], tick)
            self._line([(self._left, y), (self._right, y)], "grid")
            self._words(self._left - 6, y + 4, told(tick), "end")
        middle = (self._top + self._bottom) / 2
        self._words(12, middle, label, "middle", "name", f' transform="rotate(-90 12 {middle:.1f})"')

    def line(self, xs: Sequence[float], ys: Sequence[float], kind: str, told: str = "") -> None:
        """Draws a line through points; `told` is what a pointer that rests on it is told."""
        self._line([self.at(x, y) for x, y in zip(xs, ys, strict=True)], kind, told)

    def point(self, x: float, y: float, kind: str) -> None:
        """Draws a dot."""
        x, y = self.at(x, y)
        self._parts.append(f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')

    def diamond(self, x: float, y: float) -> None:
        """Draws a hollow diamond."""
        x, y = self.at(x, y)
        self._parts.append(f'<path class="hollow" d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5-5z"/>')

    def words(self, x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> None:
        """Writes words at a height of the data, `x` in units of the picture."""
        self._words(x, self.at(self._x[0], y)[1], text, anchor, kind)

    def _line(self, points: Sequence[tuple[float, float]], kind: str, told: str = "") -> None:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        inside = f"<title>{escape(told)}</title>" if told else ""
        self._parts.append(f'<path class="line {kind}" d="M{path}">{inside}</path>')

    def _words(self, x: float, y: float, text: str, anchor: str, kind: str = "", more: str = "") -> None:
        self._parts.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'
        )

    def svg(self, said: str) -> str:
        """Returns the picture; `said` is what it shows, in words."""
        return (
            f'<svg role="img" viewBox="0 0 {WIDTH} {self.height:g}" aria-label="{escape(f"{self.title}. {said}")}">'
            f'<text class="title" x="2" y="16">{escape(self.title)}</text>{"".join(self._parts)}</svg>'
        )


def _scaled(ends: tuple[float, float], log: bool) -> Callable[[float], float]:
    """Returns what takes a value of an axis to its share of the way from the first end to the last."""
    of = math.log10 if log else float
    first, last = map(of, ends)
    return lambda value: (of(value) - first) / (last - first)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Returns round numbers from `low` to `high`, about `most` of them."""
    found = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [round(float(tick), 10) for tick in found if low <= tick <= high]
