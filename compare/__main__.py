"""python -m compare report RUNS | bundle RUNS | verify FILE.zip | speed ... | budget ...

report  compares every run below RUNS
bundle  packs that comparison, with all it takes to repeat it, into one file
verify  repeats the runs of such a file and compares
speed   measures time and memory against length:  speed mixer=softmax,gla length=1024,4096,16384
budget  counts parameters, state and FLOPs:       budget mixer=softmax,gla length=1024,65536
"""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m compare", description="Compare runs that are done.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("report", help="tables, figures and a page of every run below a directory")
    _runs(command, "a directory: where the report goes (RUNS/comparisons/all)")
    command.set_defaults(call=report)
    command = commands.add_parser("bundle", help="the report, the records and their configs in one zip file")
    _runs(command, "the zip file (RUNS/comparisons/bundle.zip)")
    command.set_defaults(call=bundle)
    command = commands.add_parser("verify", help="run what a bundle holds again; exit code 1 if anything differs")
    command.add_argument("file", type=Path, help="a zip file made by bundle")
    command.add_argument("--only", metavar="LABEL", help="only the runs of this label")
    command.add_argument(
        "--trust", metavar="CLASS", action="append", default=[], help="a class that is not in conf and may be called"
    )
    command.set_defaults(call=verify)
    command = commands.add_parser("speed", help="time and memory against length: forward, prefill, training, decoding")
    _models(command)
    command.add_argument("--seconds", type=float, default=60.0, help="at most, for one mixer in one mode (60)")
    command.add_argument("--memory", type=float, default=4.0, help="at most, in GiB of live tensors (4)")
    command.add_argument("--out", type=Path, default=Path("runs/speed"), help="a directory (runs/speed)")
    command.set_defaults(call=speed)
    command = commands.add_parser("budget", help="parameters, state bytes and FLOPs, counted on the meta device")
    _models(command)
    command.add_argument("--out", type=Path, help="a CSV file to write too")
    command.set_defaults(call=budget)
    options = parser.parse_args(arguments)
    try:
        return options.call(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _runs(command: argparse.ArgumentParser, out: str) -> None:
    command.add_argument("runs", type=Path, help="a directory with result.json files below it")
    command.add_argument("--out", type=Path, help=out)
    command.add_argument("--sweep", help="only the runs of this sweep")


def _models(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "words", nargs="+", metavar="KEY=VALUE", help="mixer=softmax,gla length=1024,4096, and train.py's overrides"
    )


def report(options: argparse.Namespace) -> int:
    from compare import results
    from compare.report import report

    out = options.out or options.runs / "comparisons" / (options.sweep or "all")
    report(results.read_all(_directory(options.runs), options.sweep), out)
    print(f"\ncomparison: {out / 'report.html'}")
    return 0


def bundle(options: argparse.Namespace) -> int:
    from compare.bundle import pack

    out = options.out or options.runs / "comparisons" / "bundle.zip"
    print(f"bundle: {pack(_directory(options.runs), out, options.sweep)}")
    return 0


def verify(options: argparse.Namespace) -> int:
    from compare.bundle import verify

    return verify(options.file, options.only, options.trust)


def speed(options: argparse.Namespace) -> int:
    from compare.scaling import run_speed

    run_speed(options.words, options.seconds, options.memory * 2**30, options.out)
    return 0


def budget(options: argparse.Namespace) -> int:
    from compare.scaling import run_budget

    run_budget(options.words, options.out)
    return 0


def _directory(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError(f"{path} is not a directory")
    return path


if __name__ == "__main__":
    sys.exit(main())
