"""python -m compare report RUNS [--out DIR]: compare every run below RUNS."""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m compare", description="Compare runs that are done.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("report", help="tables, figures and a page of every run below a directory")
    command.add_argument("runs", type=Path, help="a directory with result.json files below it")
    command.add_argument("--out", type=Path, help="where the report goes (RUNS/comparisons/all)")
    command.add_argument("--sweep", help="only the runs of this sweep")
    options = parser.parse_args(arguments)
    from compare import results
    from compare.report import report

    out = options.out or options.runs / "comparisons" / (options.sweep or "all")
    try:
        if not options.runs.is_dir():
            raise ValueError(f"{options.runs} is not a directory")
        report(results.read_all(options.runs, options.sweep), out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\ncomparison: {out / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
