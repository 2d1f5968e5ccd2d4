"""The figures of the report, as SVG that repeats byte for byte, each with the numbers it shows as CSV."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from compare import stats
from compare.slices import by_axis
from compare.tables import Table, curve
from compare.text import binary, si

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
    """Score by slice (a figure for each thing that varies), learning curves by step and by time, score against state
    and against FLOPs, time and memory against length, and which layers are what; what there is."""
    state = f"bytes of state{f' after {table.length} tokens' * bool(table.length)}"
    figures = [
        *(_by_slice(table, axis, points) for axis, points in by_axis(table).items()),
        _curves(table, "step", "steps"),
        _curves(table, "seconds", "time"),
        _against(table, "state", state, lambda row: row.cost("state_bytes"), binary),
        _against(table, "FLOPs", "FLOPs per token", lambda row: row.cost("flops", "forward_per_token"), si),
        _by_length(table, "time", "us_per_token", "us per token"),
        _by_length(table, "memory", "peak_bytes", "peak bytes"),
        _layers(table),
    ]
    return [figure for figure in figures if figure]


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
        if axis == "length" and numeric:
            trained = {run["config"].get("task", {}).get("length") for row in table.rows for run in row.runs} - {None}
            for length in trained:
                ax.axvline(length, color="#aaaaaa", linewidth=0.8, linestyle=":", zorder=0)
                ax.annotate("trained", (length, 1), xycoords=("data", "axes fraction"), fontsize=7, color="#888888")
        ax.set(xlabel=axis, ylabel=f"test {table.metric}")

    title = f"{table.metric} by {axis}"
    return figure(table.task, title, plot, ["mixer", axis, "mean", "low", "high", "seeds"], data)


def _curves(table: Table, key: str, name: str) -> Figure | None:
    """Validation against steps or seconds: a thin line for each seed, and the mean where the seeds share the places."""
    curves = {row.label: {run["seed"]: points for run in row.runs if (points := curve(run, key))} for row in table.rows}
    if not any(len(points) > 1 for own in curves.values() for points in own.values()):
        return None
    data = []

    def plot(ax):
        for label, own in curves.items():
            if not own:
                continue
            style, at = _look(table, label) | {"marker": ""}, {}
            for seed, points in own.items():
                for place, value in points:
                    at.setdefault(place, []).append(value)
                    data.append([label, seed, place, value])
            shared = sorted(place for place, values in at.items() if len(values) == len(own))
            shared = shared if len(shared) > 1 else []
            thin = {"linewidth": 0.6, "alpha": 0.4} if shared else {"linewidth": 1, "alpha": 0.8}
            for points in own.values():
                ax.plot(*zip(*points, strict=True), color=style["color"], **thin)
            ax.plot(shared, [stats.mean(at[place]) for place in shared], label=label, **style)
        _references(ax, table)
        ax.set(xlabel=key, ylabel=f"validation {table.metric}")

    head = ["mixer", "seed", key, f"validation {table.metric}"]
    return figure(table.task, f"learning curves by {name}", plot, head, data)


def _against(table: Table, name: str, xlabel: str, cost: Callable, form: Callable) -> Figure | None:
    """Score against a cost, and the Pareto front: those that no other both undercuts and outscores."""
    placed = [(row, size) for row in table.rows if row.scores and not row.again and (size := cost(row)) is not None]
    if not placed:
        return None
    best = front([(size, row.mean) for row, size in placed], table.higher)
    data = []

    def plot(ax):
        for row, size in placed:
            style = _look(table, row.label)
            low, high = row.interval or (None, None)
            data.append([row.label, size, row.mean, low, high, len(row.scores), (size, row.mean) in best])
            ax.plot([size], [row.mean], label=row.label, **style | {"linestyle": ""})
            if low is not None:
                ax.plot([size, size], [low, high], color=style["color"], linewidth=1, alpha=0.6)
        ax.step(*zip(*best, strict=True), where="post", color="#999999", linewidth=0.9, label="Pareto front", zorder=1)
        if any(size == 0 for _, size in placed):
            ax.set_xscale("symlog", base=2, linthresh=min((size for _, size in placed if size), default=1))
        else:
            ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda value, _: form(value))
        ax.minorticks_off()
        _references(ax, table)
        ax.set(xlabel=xlabel, ylabel=f"test {table.metric}")

    head = ["mixer", xlabel, "mean", "low", "high", "seeds", "on the front"]
    return figure(table.task, f"{table.metric} against {name}", plot, head, data)


def front(points: list[tuple[float, float]], higher: bool) -> list[tuple[float, float]]:
    """Of (cost, score) those that no other point undercuts or outscores without being worse in the other, by cost."""
    best: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1] if higher else point[1])):
        if not best or (score > best[-1][1] if higher else score < best[-1][1]):
            best.append((cost, score))
    return best


def _by_length(table: Table, name: str, key: str, ylabel: str) -> Figure | None:
    """What a training step on one sequence costs as it grows: the median over seeds."""
    costs: dict[str, dict[int, list[float]]] = {}
    for row in table.rows:
        for run in row.runs:
            for length, cost in ((run.get("speed") or {}).get("by_length") or {}).items():
                costs.setdefault(row.label, {}).setdefault(int(length), []).append(cost[key])
    if not any(len(at) > 1 for at in costs.values()):
        return None
    data = []

    def plot(ax):
        for label, at in costs.items():
            points = [(length, median(at[length])) for length in sorted(at)]
            data.extend([label, length, cost] for length, cost in points)
            ax.plot(*zip(*points, strict=True), label=label, **_look(table, label))
        lengths = sorted({length for at in costs.values() for length in at})
        ax.set_xscale("log", base=2)
        least, most = min(cost for *_, cost in data), max(cost for *_, cost in data)
        if least > 0 and most >= 4 * least:  # else there may be no power of two to mark
            ax.set_yscale("log", base=2)
        ax.set_xticks(lengths, [str(length) for length in lengths])
        ax.yaxis.set_major_formatter(lambda value, _: binary(value) if key == "peak_bytes" else si(value))
        ax.minorticks_off()
        ax.set(xlabel="tokens in one training step", ylabel=ylabel)

    return figure(table.task, f"{name} against length", plot, ["mixer", "length", ylabel], data)


def _layers(table: Table) -> Figure | None:
    """Which layer is which mixer, a line for each arrangement (config key `layers`), the best first, with its score."""
    placed = [(row, row.runs[0]["config"].get("layers")) for row in table.rows if row.scores and not row.again]
    placed = [(row, layers) for row, layers in placed if isinstance(layers, list)]
    if len(placed) < 2:
        return None
    placed.sort(key=lambda pair: pair[0].mean, reverse=table.higher)
    kinds = list(dict.fromkeys(kind for _, layers in placed for kind in sorted(layers)))
    data = []

    def plot(ax):
        for y, (row, layers) in enumerate(placed):
            low, high = row.interval or (None, None)
            data.append([row.label, " ".join(layers), row.mean, low, high, len(row.scores)])
            for x, kind in enumerate(layers):
                ax.barh(y, 0.92, left=x, height=0.8, color=COLOURS[kinds.index(kind) % len(COLOURS)])
                ax.annotate(kind, (x + 0.46, y), ha="center", va="center", fontsize=7, color="white")
            interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
            ax.annotate(f"{row.mean:.3f}{interval}", (len(layers) + 0.1, y), va="center", fontsize=8)
        ax.set(yticks=[], xlabel="layer", xlim=(0, max(len(layers) for _, layers in placed) + 2.5))
        ax.set_ylim(len(placed) - 0.5, -0.5)
        deepest = max(len(layers) for _, layers in placed)
        ax.set_xticks([x + 0.46 for x in range(deepest)], [str(x) for x in range(deepest)])
        ax.grid(False)
        named = placed[0][0].runs[0]["config"].get("mixers", {})
        for i, kind in enumerate(kinds):
            name = named.get(kind, {}).get("_target_", kind).split(".")[-1]
            ax.bar(0, 0, color=COLOURS[i % len(COLOURS)], label=f"{kind}: {name}")

    head = ["mixer", "layers", "mean", "low", "high", "seeds"]
    return figure(table.task, f"{table.metric} by place in depth", plot, head, data)


def _look(table: Table, label: str) -> dict:
    """A label looks the same in all figures of its table."""
    return look([row.label for row in table.rows].index(label))


def look(i: int) -> dict:
    n = len(COLOURS)
    return {"color": COLOURS[i % n], "marker": MARKERS[i % n], "linestyle": DASHES[i // n % len(DASHES)]}


def _short(label: str, limit: int = 30) -> str:
    """A label's mixer and its end, which both say what it is: a longer legend would leave no room for the axes."""
    return label if len(label) <= limit else f"{label[: limit - 4]}…{label[-3:]}"


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
        handles, labels = ax.get_legend_handles_labels()
        canvas.legend(handles, [_short(label) for label in labels], loc="outside right upper", fontsize=8)
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]  # the page has its own document type
    rows = io.StringIO()
    csv.writer(rows, lineterminator="\n").writerows([head, *data])
    return Figure(title, svg, rows.getvalue())
