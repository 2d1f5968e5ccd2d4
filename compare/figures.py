"""The figures of the report, as SVG that repeats byte for byte, each with the numbers it shows as CSV."""

import csv
import io
from dataclasses import dataclass

from compare import stats
from compare.tables import Table, binary, curve

# Okabe and Ito's colours, which colour-blind readers can tell apart; markers and dashes tell the labels apart in print
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D3B")
MARKERS = "osD^vPX*"
DASHES = ("-", "--", ":")
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "svg.fonttype": "path",  # looks the same wherever it is opened
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": "#444444",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "axes.grid": True,
    "grid.color": "#eeeeee",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
}


@dataclass(frozen=True)
class Figure:
    title: str
    svg: str
    csv: str


def draw(table: Table) -> list[Figure]:
    """Score by slice (a figure for each thing that varies), learning curves, and score against state; what there is."""
    figures = [_by_slice(table, axis, points) for axis, points in slices(table).items()]
    return [figure for figure in (*figures, _curves(table), _against_state(table)) if figure]


def slices(table: Table) -> dict[str, dict]:
    """{axis: {label: {value: [the seeds' scores]}}} for every axis that has two values or more."""
    axes: dict[str, dict] = {}
    for row in table.rows:
        for run in row.runs:
            for part in run.get("slices") or []:
                for axis, value in _place(part).items():
                    scores = axes.setdefault(axis, {}).setdefault(row.label, {}).setdefault(value, [])
                    if part.get("score") is not None and not part.get("reason"):
                        scores.append(part["score"])
    return {axis: labels for axis, labels in axes.items() if len({v for at in labels.values() for v in at}) > 1}


def _place(part: dict) -> dict[str, float | str]:
    """Where on which axes a slice lies: its values by name, or one value under the slice's own name."""
    values = part["values"] if isinstance(part["values"], dict) else {part["name"]: part["values"]}
    return {
        axis: value
        if isinstance(value, int | float)
        else "–".join(map(str, value))
        if isinstance(value, list)
        else str(value)
        for axis, value in values.items()
    }


def _by_slice(table: Table, axis: str, labels: dict) -> Figure:
    values = list(dict.fromkeys(value for at in labels.values() for value in at))
    numeric = all(isinstance(value, int | float) for value in values)
    values = sorted(values) if numeric else values
    data = []

    def plot(ax):
        for i, (label, at) in enumerate(labels.items()):
            style, shift = _look(table, label), (i - (len(labels) - 1) / 2) * 0.06
            shown = [value for value in values if at.get(value)]
            means = [stats.mean(at[value]) for value in shown]
            places = shown if numeric else [values.index(value) + shift for value in shown]
            ax.plot(places, means, label=label, **style)
            for value, place, mean in zip(shown, places, means, strict=True):
                low, high = stats.interval(at[value]) or (None, None)
                data.append([label, value, mean, low, high, len(at[value])])
                if low is not None:
                    ax.plot([place, place], [low, high], color=style["color"], linewidth=1, alpha=0.6)
        if numeric and values[0] > 0 and values[-1] >= 8 * values[0]:
            ax.set_xscale("log", base=2)
        ax.set_xticks(values if numeric else range(len(values)), [str(value) for value in values])
        ax.minorticks_off()
        _references(ax, table)
        ax.set(xlabel=axis, ylabel=f"test {table.metric}")

    title = f"{table.metric} by {axis}"
    return figure(table.task, title, plot, ["mixer", axis, "mean", "low", "high", "seeds"], data)


def _curves(table: Table) -> Figure | None:
    curves = {row.label: {run["seed"]: points for run in row.runs if (points := curve(run))} for row in table.rows}
    if not any(len(curve) > 1 for own in curves.values() for curve in own.values()):
        return None
    data = []

    def plot(ax):
        for label, own in curves.items():
            if not own:
                continue
            style, at = _look(table, label) | {"marker": ""}, {}
            for seed, points in own.items():
                ax.plot(*zip(*points, strict=True), color=style["color"], linewidth=0.6, alpha=0.4)
                for step, value in points:
                    at.setdefault(step, []).append(value)
                    data.append([label, seed, step, value])
            shared = sorted(step for step, values in at.items() if len(values) == len(own))
            ax.plot(shared, [stats.mean(at[step]) for step in shared], label=label, **style)
        _references(ax, table)
        ax.set(xlabel="step", ylabel=f"validation {table.metric}")

    return figure(table.task, "learning curves", plot, ["mixer", "seed", "step", f"validation {table.metric}"], data)


def _against_state(table: Table) -> Figure | None:
    placed = [(row, size) for row in table.rows if row.scores and (size := row.cost("state_bytes")) is not None]
    if not placed:
        return None
    data = []

    def plot(ax):
        for row, size in placed:
            style = _look(table, row.label)
            low, high = row.interval or (None, None)
            data.append([row.label, size, row.mean, low, high, len(row.scores)])
            ax.plot([size], [row.mean], label=row.label, **style | {"linestyle": ""})
            if low is not None:
                ax.plot([size, size], [low, high], color=style["color"], linewidth=1, alpha=0.6)
        if any(size == 0 for _, size in placed):
            ax.set_xscale("symlog", base=2, linthresh=min((size for _, size in placed if size), default=1))
        else:
            ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda value, _: binary(value))
        ax.minorticks_off()
        _references(ax, table)
        ax.set(
            xlabel=f"bytes of state{f' after {table.length} tokens' * bool(table.length)}",
            ylabel=f"test {table.metric}",
        )

    title = f"{table.metric} against state"
    return figure(table.task, title, plot, ["mixer", "state bytes", "mean", "low", "high", "seeds"], data)


def _look(table: Table, label: str) -> dict:
    """A label looks the same in all figures of its table."""
    return look([row.label for row in table.rows].index(label))


def look(i: int) -> dict:
    n = len(COLOURS)
    return {"color": COLOURS[i % n], "marker": MARKERS[i % n], "linestyle": DASHES[i // n % len(DASHES)]}


def _references(ax, table: Table) -> None:
    for name, value in table.references.items():
        ax.axhline(value, color="#aaaaaa", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        ax.annotate(
            name, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7, color="#888888"
        )


def figure(name: str, title: str, plot, head: list[str], data: list[list]) -> Figure:
    """What plot(axes) draws; `name` and the title together occur once on a page. plot may fill `data`."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    # the salt makes ids repeat, and differ between the figures of one page
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": f"{name} {title}"}):
        canvas = Canvas(figsize=(6.4, 3.4), layout="constrained")
        FigureCanvasSVG(canvas)
        ax = canvas.add_subplot()
        plot(ax)
        canvas.legend(loc="outside right upper", fontsize=8)
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]  # the page has its own document type
    rows = io.StringIO()
    csv.writer(rows, lineterminator="\n").writerows([head, *data])
    return Figure(title, svg, rows.getvalue())
