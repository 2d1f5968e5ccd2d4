"""The comparison for people: a table in the terminal, the same as markdown and CSV, and one self-contained page."""

import importlib.util
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from compare import results, slices
from compare.columns import Column, columns
from compare.comparison import compare
from compare.tables import Comparison, Table

NO_FIGURES = "No figures: matplotlib is not installed; pip install seqmix[report]."


def report(records: list[dict], directory: Path, console: Console | None = None) -> dict[str, list]:
    """Compare the records; print the tables and write comparison.md, comparison.csv and report.html to directory.
    Returns the figures of each task; none without matplotlib.

    Raises ValueError, before anything is written, where the records cannot be compared.
    """
    from compare import page

    comparison = compare(records)
    console = console or Console()
    figures: dict[str, list] | None = None
    if importlib.util.find_spec("matplotlib"):
        from compare.figures import draw

        figures = {table.task: draw(table) for table in comparison.tables}
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    results.replace(directory / "comparison.md", markdown(comparison))
    results.write_csv(directory / "comparison.csv", rows(comparison))
    results.replace(directory / "report.html", page.render(comparison, figures, NO_FIGURES))
    for table in comparison.tables:
        console.print(terminal(table, console))
    for warning in comparison.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))
    if figures is None:
        console.print(NO_FIGURES, style="dim")
    return figures or {}


def terminal(table: Table, console: Console) -> RenderableType:
    """The table in one grid, or in as many below each other as the width of the console asks for."""
    first, *rest = columns(table)
    parts: list[list[Column]] = [[first]]
    roomy = _width(table, [first, *rest], console) <= console.width
    for column in rest:
        turn = column.cost and not parts[-1][-1].cost and parts[-1] != [first]
        if not roomy and (turn or _width(table, [*parts[-1], column], console) > console.width and len(parts[-1]) > 1):
            parts.append([first])
        parts[-1].append(column)
    return Group(
        Text.assemble(("\n" + table.task, "bold"), (f"   {_direction(table)}", "dim")),
        *(_grid(table, part) for part in parts),
        *_slices(table),
        Padding(Text(table.verdict), (0, 1)),
        *(Padding(Text(note, style="dim"), (0, 1)) for note in table.notes),
    )


def _width(table: Table, shown: list[Column], console: Console) -> int:
    return Measurement.get(console, console.options.update(width=10_000), _grid(table, shown)).maximum


def _grid(table: Table, shown: list[Column]) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, padding=(0, 1))
    for column in shown:
        left = column.names[0] in ("mixer", "scores", "outcome")
        grid.add_column(Text(column.head), justify="left" if left else "right", overflow="fold")
    for row in table.rows:
        style = "" if row.scores else "yellow"
        first, *rest = (Text(column.cell(row).text) for column in shown)
        first.stylize("bold")
        grid.add_row(first, *rest, style=style)
    if any(column.names[0] == "mean" for column in shown):
        grid.add_section()
        for name, value in table.references.items():
            cells = (f"{value:.3f}" if column.names[0] == "mean" else "" for column in shown[1:])
            grid.add_row(Text(name), *cells, style="dim")
    return grid


def _slices(table: Table) -> list[Grid]:
    head, *lines = slices.means(table) or [[]]
    return [plain(head, lines)] if lines else []


def plain(head: list[str], lines: list[list[str]]) -> Grid:
    """A grid of text, whose first column names the lines."""
    grid = Grid(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, padding=(0, 1))
    for i, cell in enumerate(head):
        grid.add_column(Text(cell), justify="right" if i else "left", overflow="fold")
    for line in lines:
        grid.add_row(*map(Text, line))
    return grid


def _direction(table: Table) -> str:
    return f"test {table.metric}, {'higher' if table.higher else 'lower'} is better"


def markdown(comparison: Comparison) -> str:
    lines = ["# Comparison", ""]
    lines += [f"> warning: {warning}" + "\n" for warning in comparison.warnings]
    for table in comparison.tables:
        shown = columns(table)
        lines += [f"## {table.task}", "", f"{_direction(table).capitalize()}.", ""]
        lines += [line(column.head for column in shown), line("---" for _ in shown)]
        lines += [line(column.cell(row).text for column in shown) for row in table.rows]
        lines += [line(column.reference(*known).text for column in shown) for known in table.references.items()]
        head, *parts = slices.means(table) or [[]]
        if parts:
            lines += ["", line(head), line("---" for _ in head), *map(line, parts)]
        lines += ["", f"**{table.verdict}**", "", *(f"- {note}" for note in table.notes), ""]
    return "\n".join(lines)


def line(cells) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def rows(comparison: Comparison) -> list[dict]:
    """The tables' rows with every digit, the references among them."""
    flat = []
    for table in comparison.tables:
        shown = columns(table)
        lines = [[(column, column.cell(row)) for column in shown] for row in table.rows]
        lines += [[(column, column.reference(*known)) for column in shown] for known in table.references.items()]
        for cells in lines:
            pairs = (pair for column, cell in cells for pair in zip(column.names, cell.raw, strict=False))
            flat.append({"task": table.task} | dict(pairs))
    return flat
