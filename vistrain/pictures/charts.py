"""Curves of a run, bars and histograms of a data set, confusion matrices.

Drawn with matplotlib's objects and not with pyplot: no global state, no display.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vistrain.errors import DataError
from vistrain.pictures.grids import COMPRESSION
from vistrain.pictures.text import families, readable
from vistrain.writing import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
GROUND = "#888888"
PALETTE = ("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")
PANEL = (5.6, 3.6)  # inches that a panel of curves takes
SMOOTH_FROM = 60  # points from which a training curve is smoothed (the raw one stays, faint)
MOST_BARS = 100
MOST_NUMBERS = 20  # classes up to which a confusion matrix has its numbers written in
# Names of numbers that begin alike in capitals are drawn together; what such a beginning stands for
KINDS = {"AP": "average precision", "AR": "average recall"}
# What a loss's name may end in beyond its kind: a decoder layer, the encoder's proposals, denoising queries
_AUXILIARY = re.compile(r"(_\d+|_enc|_dn|_aux|_interm)+$")


@dataclass(frozen=True)
class Series:
    """One column: x and y `[N]` float64, the cells that hold finite numbers."""

    x: np.ndarray
    y: np.ndarray


def curves(metrics_csv: str | Path, png: str | Path, lower_is_better: Collection[str] = ()) -> Path | None:
    """Draw a run's `metrics.csv`: losses, their parts, the numbers of each protocol, learning rate.

    Any CSV with a header does; blank cells are normal (losses and metrics are logged at different steps). What is not a
    finite number is left out, and so is a -1 among shares, which are never negative: it says "nothing to measure". The
    horizontal axis is `step`, else `epoch`, else the row. Numbers of a protocol share a panel, by what their names
    begin with in capitals (`APs`, `AP50`; `AR10`). Losses of inner layers (`loss_bbox_0`, `loss_bbox_enc`,
    `loss_bbox_dn_3`) share the colour of their kind and are thin.

    Args:
        metrics_csv: read as it is, also while a run writes it.
        png: written whole or not at all.
        lower_is_better: columns, beside losses, of which low values are the best.

    Returns:
        `png`, or None when there is nothing to draw yet (nothing is written then).

    Raises:
        DataError: the CSV is missing or the picture cannot be written.
    """
    series, axis = _read(metrics_csv)
    panels = _panels(series)
    if not panels:
        return None
    columns = min(len(panels), 2 if len(panels) <= 4 else 3)
    rows = -(-len(panels) // columns)
    figure, axes = new_panels(rows, columns)
    for place, (title, names) in zip(axes, panels.items(), strict=False):
        if title == "loss parts":
            _draw_parts(place, {n: series[n] for n in names})
        else:
            is_metric = title not in ("loss", "learning rate")
            low = lower_is_better if is_metric else None
            _draw_lines(place, {n: series[n] for n in names}, low, smooth=title == "loss")
        if title == "learning rate":
            _log_if_wide(place, [series[n] for n in names])
        place.set_title(title, fontsize=11, loc="left")
        place.set_xlabel(axis)
    for place in axes[len(panels) :]:
        place.set_visible(False)
    return save_figure(figure, png)


def curves_together(runs: Mapping[str, str | Path], png: str | Path) -> Path | None:
    """Draw the same numbers of several runs over each other: the loss, and each number of their evaluations.

    Args:
        runs: name -> its `metrics.csv`.
        png: written whole or not at all.

    Returns:
        `png`, or None when no number is of two runs (nothing is written then).

    Raises:
        DataError: a CSV is missing or the picture cannot be written.
    """
    read = {name: _read(path)[0] for name, path in runs.items()}
    counts = Counter(column for series in read.values() for column in series)
    shared = [name for name, count in counts.items() if count > 1 and (name == "train/loss" or name.startswith("val/"))]
    if not shared:
        return None
    columns = min(len(shared), 2 if len(shared) <= 4 else 3)
    figure, axes = new_panels(-(-len(shared) // columns), columns)
    for place, column in zip(axes, shared, strict=False):
        lines = {name: series[column] for name, series in read.items() if column in series}
        for i, name in enumerate(read):
            if name in lines:
                y = _smoothed(lines[name].y) if len(lines[name].y) >= SMOOTH_FROM else lines[name].y
                marker = "o" if len(y) < 30 else ""
                colour, label = PALETTE[i % len(PALETTE)], readable(name)
                place.plot(lines[name].x, y, color=colour, label=label, linewidth=1.6, marker=marker, markersize=3)
        place.set_title(column, fontsize=11, loc="left")
        place.set_xlabel("step")
        place.legend(fontsize=7.5, frameon=False)
    for place in axes[len(shared) :]:
        place.set_visible(False)
    return save_figure(figure, png, [readable(name) for name in runs])


def bars(values: Mapping[str, float], png: str | Path, title: str = "", xlabel: str = "") -> Path:
    """Horizontal bars with their values, from top to bottom in the order given; of more than 100 the first 100.

    Args:
        values: name -> length. The axis is logarithmic when the largest is more than 100 times the smallest above zero.
        png: written whole or not at all.
        title, xlabel: texts; the unit belongs into `xlabel`.

    Raises:
        DataError: the picture cannot be written.
    """
    names, lengths = (
        list(map(readable, values))[:MOST_BARS],
        np.array(list(values.values())[:MOST_BARS], dtype=np.float64),
    )
    figure, (place,) = new_figure(7.5, 1.2 + 0.22 * max(len(names), 3), 1, 1)
    at = np.arange(len(names))
    place.barh(at, lengths, height=0.75, color=PALETTE[0])
    positive = lengths[lengths > 0]
    if positive.size and positive.max() > 100 * positive.min():
        place.set_xscale("log")
        place.set_xlim(positive.min() / 2, positive.max() * 2)
    else:
        place.set_xlim(0, 1.12 * max(lengths.max(initial=0.0), 1e-12))
    shortest = place.get_xlim()[0]
    for y, length in zip(at, lengths, strict=True):
        text = f"{length:.3g}" if length < 1000 else f"{length:g}"
        place.annotate(text, (max(length, shortest), y), (3, 0), textcoords="offset points", va="center", fontsize=7)
    place.set_yticks(at, [name if len(name) <= 40 else name[:39] + "…" for name in names], fontsize=8)
    place.set_ylim(len(names) - 0.4, -0.6)
    place.grid(axis="y", visible=False)
    hidden = len(values) - len(names)
    place.set_title(title + (f" (first {MOST_BARS} of {len(values)})" if hidden else ""), fontsize=11, loc="left")
    place.set_xlabel(xlabel)
    return save_figure(figure, png, names)


def histogram(values: Sequence[float], png: str | Path, title: str = "", xlabel: str = "", bins: int = 40) -> Path:
    """How often values occur; finite ones alone, counted in the title.

    Args:
        values: any numbers. Bins are spaced logarithmically when all are above zero and span more than 100 times.
        png: written whole or not at all.
        title, xlabel: texts; the unit belongs into `xlabel`.
        bins: how many.

    Raises:
        DataError: the picture cannot be written.
    """
    numbers = np.asarray(values, dtype=np.float64).reshape(-1)
    numbers = numbers[np.isfinite(numbers)]
    figure, (place,) = new_figure(6.4, 3.8, 1, 1)
    if numbers.size:
        low, high = float(numbers.min()), float(numbers.max())
        if low > 0 and high > 100 * low:
            place.set_xscale("log")
            edges = np.geomspace(low, high, bins + 1)
        else:
            edges = np.linspace(low, high if high > low else low + 1, bins + 1)
        place.hist(numbers, edges.tolist(), color=PALETTE[0], edgecolor="white", linewidth=0.3)
    place.set_title(f"{title} ({numbers.size})", fontsize=11, loc="left")
    place.set_xlabel(xlabel)
    place.set_ylabel("count")
    return save_figure(figure, png)


def box_plot(panels: Mapping[str, Mapping[str, Sequence[float]]], png: str | Path, title: str = "") -> Path:
    """Boxes from the first to the third quartile with a line at the median, whiskers as far as values lie within 1.5
    times the box's length of it, and every value as a dot; names with how many values they have.

    Args:
        panels: what is measured, with its unit -> name -> values; those that are not finite are left out.
        png: written whole or not at all.
        title: text above the first panel.

    Raises:
        DataError: the picture cannot be written.
    """
    most = max((len(groups) for groups in panels.values()), default=0)
    figure, axes = new_figure(max(3.2, 1.4 + 0.7 * most) * max(len(panels), 1), 4.2, 1, max(len(panels), 1))
    shown: list[str] = []
    for place, (what, groups) in zip(axes, panels.items(), strict=False):
        finite = [np.asarray(values, np.float64)[np.isfinite(values)] for values in groups.values()]
        at, names = np.arange(1, len(groups) + 1), [readable(name) for name in groups]
        place.boxplot(
            finite, positions=at, widths=0.55, showfliers=False, medianprops={"color": PALETTE[1], "linewidth": 1.6}
        )
        for x, values in zip(at, finite, strict=True):
            # Side by side by their order, so that the same numbers are the same picture
            aside = 0.18 * np.sin(2.4 * np.arange(len(values)))
            place.plot(x + aside, np.sort(values), "o", color=PALETTE[0], alpha=0.5, markersize=3)
        labels = [f"{name[:23]}\n({len(values)})" for name, values in zip(names, finite, strict=True)]
        place.set_xticks(at, labels, fontsize=8)
        place.grid(axis="x", visible=False)
        place.set_ylabel(what)
        shown += names
    axes[0].set_title(title, fontsize=11, loc="left")
    return save_figure(figure, png, shown)


def confusion(counts: np.ndarray, names: Sequence[str], png: str | Path, title: str = "") -> Path:
    """Draw a confusion matrix, coloured by the share of each row.

    Args:
        counts: `[K, K]` counts, rows what is there, columns what is said.
        names: K class names (with `background`, if it is one).
        png: written whole or not at all.
        title: text above.

    Raises:
        DataError: the picture cannot be written.
    """
    counts = np.asarray(counts)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = float(np.clip(2.4 + 0.42 * len(names), 4.5, 16))
    figure, (place,) = new_figure(size + 1.2, size, 1, 1)
    place.grid(visible=False)
    image = place.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=place, shrink=0.6, label="share of the row")
    if len(names) <= MOST_NUMBERS:
        for i, j in np.argwhere(counts > 0):
            colour = "white" if share[i, j] > 0.6 else "black"
            place.text(j, i, f"{counts[i, j]:d}", ha="center", va="center", fontsize=7, color=colour)
    small = 8 if len(names) <= MOST_NUMBERS else 5
    shown = [name if len(name) <= 24 else name[:23] + "…" for name in map(readable, names)]
    place.set_xticks(range(len(names)), shown, rotation=90, fontsize=small)
    totals = counts.sum(1)
    place.set_yticks(range(len(names)), [f"{n} ({t})" for n, t in zip(shown, totals, strict=True)], fontsize=small)
    place.set_xlabel("said")
    place.set_ylabel("there")
    place.set_title(title, fontsize=11, loc="left")
    return save_figure(figure, png, shown)


def _read(path: str | Path) -> tuple[dict[str, Series], str]:
    """The CSV's columns of numbers, and the name of the horizontal axis."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise DataError(str(path), f"cannot be read ({error.strerror})") from error
    names = [n for n in (rows[0] if rows else {}) if n]
    axis = next((n for n in ("step", "epoch") if n in names), "row")
    points: dict[str, list[tuple[float, float]]] = {n: [] for n in names if n not in ("step", "epoch")}
    for i, row in enumerate(rows):
        x = float(i) if axis == "row" else _number(row.get(axis))
        for name, found in points.items():
            y = _number(row.get(name))
            if math.isfinite(x) and math.isfinite(y):
                found.append((x, y))
    measured = {n: _without_nothing(found) for n, found in points.items()}
    return {n: Series(*np.array(found).T) for n, found in measured.items() if found}, axis


def _without_nothing(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without the -1 of shares, which otherwise lie in 0..1."""
    real = [(x, y) for x, y in points if y != -1]
    return real if all(0 <= y <= 1 for _, y in real) else points


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan


def _panels(series: Mapping[str, Series]) -> dict[str, list[str]]:
    """Title -> columns. Speeds and memory (`perf/...`) are for the loggers, not for this picture."""
    panels: dict[str, list[str]] = {"loss": [], "loss parts": []}
    rates: list[str] = []
    for name in series:
        folder, _, last = name.rpartition("/")
        if last == "loss":
            panels["loss"].append(name)
        elif last.startswith("loss") or folder == "train":
            panels["loss parts"].append(name)
        elif name == "lr" or name.startswith(("lr-", "lr/")):
            rates.append(name)
        elif folder and folder != "perf":
            kind = "".join(re.findall(r"^[A-Z]{2,}", last))
            panels.setdefault(f"{folder}: {KINDS.get(kind, kind)}" if kind else folder, []).append(name)
    panels["learning rate"] = rates
    return {title: names for title, names in panels.items() if names}


def _draw_lines(place: Axes, series: Mapping[str, Series], low: Collection[str] | None, smooth: bool) -> None:
    """Lines with their last value in the legend.

    And with the best one, unless `low` is None: of the names in it that is the lowest, else the highest.
    """
    for i, (name, line) in enumerate(series.items()):
        colour = PALETTE[i % len(PALETTE)]
        last = f"{line.y[-1]:.4g}"
        label = f"{name if smooth else name.rpartition('/')[2]}  {last}"
        best = line.y[-1] if low is None else line.y.min() if name in low else line.y.max()
        if best != line.y[-1]:
            label += f"  (best {best:.4g})"
        marker = "o" if len(line.x) < 30 else ""
        if smooth and len(line.x) >= SMOOTH_FROM:
            place.plot(line.x, line.y, color=colour, alpha=0.25, linewidth=0.8)
            place.plot(line.x, _smoothed(line.y), color=colour, label=label, linewidth=1.6)
        else:
            place.plot(line.x, line.y, color=colour, label=label, linewidth=1.6, marker=marker, markersize=3)
    place.legend(fontsize=7.5, frameon=False, ncols=1 if len(series) <= 6 else 2)


def _draw_parts(place: Axes, series: Mapping[str, Series]) -> None:
    """Loss parts by kind: the last layer's line strong, the inner ones' thin in the same colour."""
    kinds = list(dict.fromkeys(_AUXILIARY.sub("", name) for name in series))
    for name, line in series.items():
        kind = _AUXILIARY.sub("", name)
        colour = PALETTE[kinds.index(kind) % len(PALETTE)]
        y = _smoothed(line.y) if len(line.y) >= SMOOTH_FROM else line.y
        if name == kind:
            label = f"{name.rpartition('/')[2]}  {line.y[-1]:.4g}"
            place.plot(line.x, y, color=colour, linewidth=1.6, label=label, zorder=3, marker="o" if len(y) == 1 else "")
        else:
            place.plot(line.x, y, color=colour, linewidth=0.6, alpha=0.45)
    inner = len(series) - sum(name in series for name in kinds)
    if inner:
        place.plot([], [], color=GROUND, linewidth=0.6, label=f"inner layers ({inner})")
    place.legend(fontsize=7.5, frameon=False, ncols=1 if len(kinds) <= 6 else 2)


def _smoothed(y: np.ndarray) -> np.ndarray:
    """Exponential moving average over about a fiftieth of the curve, corrected for its start."""
    decay = 1 - 1 / max(len(y) / 50, 2)
    total, weight, smooth = 0.0, 0.0, np.empty_like(y)
    for i, value in enumerate(y):
        total, weight = decay * total + value, decay * weight + 1
        smooth[i] = total / weight
    return smooth


def _log_if_wide(place: Axes, series: Sequence[Series]) -> None:
    values = np.concatenate([line.y for line in series])
    positive = values[values > 0]
    if positive.size and positive.max() > 100 * positive.min():
        place.set_yscale("log")


def draw_over_rates(
    rates: Sequence[float], losses: Sequence[float], line: np.ndarray, mark: float | None, png: str | Path
) -> Path:
    """Draw the loss over the learning rate, which is logarithmic.

    Args:
        rates, losses: of each step.
        line: the smoothed loss `[N]`.
        mark: a rate to point at; None: none.
        png: written whole or not at all.

    Raises:
        DataError: the picture cannot be written.
    """
    figure, (place,) = new_figure(6.4, 3.8, 1, 1)
    place.plot(rates, losses, color=PALETTE[0], alpha=0.3, linewidth=1)
    place.plot(rates, line, color=PALETTE[0], linewidth=1.8)
    place.set_xscale("log")
    if len(line):
        low, high = float(line.min()), float(line[: max(len(line) * 9 // 10, 1)].max())
        margin = 0.1 * (high - low) or 1.0
        place.set_ylim(low - margin, high + margin)  # what diverges at the end would flatten all else
    if mark is not None:
        place.axvline(mark, color=PALETTE[1], linewidth=1.2)
        place.annotate(f"{mark:.2g}", (mark, 0.94), (4, 0), ("data", "axes fraction"), "offset points", fontsize=9)
    place.set_xlabel("learning rate")
    place.set_ylabel("training loss")
    return save_figure(figure, png)


def new_figure(width: float, height: float, rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of `width` by `height` inches, with its axes row by row, in the house's look."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for place in axes:
        place.grid(color="#dddddd", linewidth=0.6)
        place.set_axisbelow(True)
        place.tick_params(which="both", labelsize=8, color=GROUND)
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            place.spines[side].set_color(GROUND)
    return figure, axes


def new_panels(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of curves: titles above, numbers at the sides. Places are given: finding them takes as long as drawing
    them, and dozens of panels may be drawn after each evaluation."""
    left, right, bottom, top = 0.6, 0.1, 0.45, 0.3  # inches around a panel
    figure, axes = new_figure(PANEL[0] * columns, PANEL[1] * rows, rows, columns)
    width, height = PANEL[0] - left - right, PANEL[1] - bottom - top
    figure.set_layout_engine(None)
    figure.subplots_adjust(
        left=left / (PANEL[0] * columns), right=1 - right / (PANEL[0] * columns), wspace=(left + right) / width,
        bottom=bottom / (PANEL[1] * rows), top=1 - top / (PANEL[1] * rows), hspace=(bottom + top) / height,
    )  # fmt: skip
    return figure, axes


def save_figure(figure: Figure, png: str | Path, names: Sequence[str] = ()) -> Path:
    """Write a figure; the file appears whole or not at all.

    Args:
        figure: of `new_figure`.
        png: the file.
        names: texts in it that may be of any script, `readable` ones.

    Raises:
        DataError: it cannot be written.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter, LogFormatter

    for axis in (axis for place in figure.axes for axis in (place.xaxis, place.yaxis)):
        if axis.get_scale() == "log":  # by itself it would be numbered with formulae, and none are drawn
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    fonts = families(names)
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a dollar sign in a name is one
        text.set_fontfamily(fonts)
    if (layout := figure.get_layout_engine()) is not None:
        # Once: Matplotlib would draw all of it twice, the first time for the places of its axes alone.
        layout.execute(figure)
        figure.set_layout_engine(None)
    with whole_file(png) as partial:
        figure.savefig(partial, format="png", pil_kwargs={"compress_level": COMPRESSION})
    return Path(png)
