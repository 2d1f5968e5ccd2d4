"""The comparison for people: a table in the terminal, the same as markdown and CSV, and one self-contained page."""

import importlib.util
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from compare import results
from compare.tables import Column, Comparison, Table, columns, compare

__all__ = ["Comparison", "compare", "report"]

NO_FIGURES = "No figures: matplotlib is not installed; pip install seqmix[report]."


def report(records: list[dict], directory: Path, console: Console | None = None) -> None:
    """Compare the records; print the tables and write comparison.md, comparison.csv and report.html to directory.

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


def terminal(table: Table, console: Console) -> RenderableType:
    """One grid where it fits the console, else the scores above the costs."""
    shown = columns(table)
    grids = [_grid(table, shown)]
    if Measurement.get(console, console.options, grids[0]).maximum > console.width:
        scores = [column for column in shown if not column.cost]
        costs = [column for column in shown if column.cost]
        grids = [_grid(table, part) for part in (scores, [shown[0], *costs] if costs else []) if part]
    return Group(
        Text.assemble(("\n" + table.task, "bold"), (f"   {_direction(table)}", "dim")),
        *grids,
        Padding(Text(table.verdict), (0, 1)),
        *(Padding(Text(note, style="dim"), (0, 1)) for note in table.notes),
    )


def _grid(table: Table, shown: list[Column]) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, padding=(0, 1))
    for i, column in enumerate(shown):
        left = i == 0 or column.head == "outcome" or column.names == ("scores",)
        grid.add_column(column.head, justify="left" if left else "right", no_wrap=i == 0)
    for row in table.rows:
        style = "" if row.scores else "yellow"
        first, *rest = (column.cell(row).text for column in shown)
        grid.add_row(Text(first, style="bold" if row.scores else "yellow"), *rest, style=style)
    if any(column.names == ("mean",) for column in shown):
        grid.add_section()
        for name, value in table.references.items():
            cells = (f"{value:.3f}" if column.names == ("mean",) else "" for column in shown[1:])
            grid.add_row(name, *cells, style="dim")
    return grid


def _direction(table: Table) -> str:
    return f"test {table.metric}, {'higher' if table.higher else 'lower'} is better"


def markdown(comparison: Comparison) -> str:
    lines = ["# Comparison", ""]
    lines += [f"> warning: {warning}" + "\n" for warning in comparison.warnings]
    for table in comparison.tables:
        shown = columns(table)
        lines += [f"## {table.task}", "", f"{_direction(table).capitalize()}.", ""]
        lines += [_line(column.head for column in shown), _line("---" for _ in shown)]
        lines += [_line(column.cell(row).text for column in shown) for row in table.rows]
        for name, value in table.references.items():
            cells = {"mixer": name, "mean": f"{value:.3f}", "outcome": "reference"}
            lines.append(_line(cells.get(column.head, "") for column in shown))
        lines += ["", f"**{table.verdict}**", "", *(f"- {note}" for note in table.notes), ""]
    return "\n".join(lines)


def _line(cells) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def rows(comparison: Comparison) -> list[dict]:
    """The tables' rows with every digit, the references among them."""
    flat = []
    for table in comparison.tables:
        shown = columns(table)
        for row in table.rows:
            cells = [pair for column in shown for pair in zip(column.names, column.cell(row).raw, strict=False)]
            flat.append({"task": table.task} | dict(cells))
        flat += [
            {"task": table.task, "mixer": name, "mean": value, "outcome": "reference"}
            for name, value in table.references.items()
        ]
    return flat
