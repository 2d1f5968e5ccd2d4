"""The short table of what `benchmarks.gpu` found."""

import itertools
import json
import math
from collections import Counter
from typing import Any

from benchmarks.gpu_cases import CASES
from benchmarks.gpu_work import DTYPES

TRUSTED = {"fp32": 1e-2, "bf16": 1e-1}  # relative errors above these are wrong, not rounded: tf32 makes 1e-3


def table(data: dict[str, Any]) -> str:
    """The short version."""
    lines = [json.dumps(data.get("about", {}).get("machine", {}))]
    lines += conformance_lines(data.get("conformance", {}))
    lines += exactness_lines(data.get("exactness", {}))
    lines += width_lines(data.get("widths", {}))
    lines += speed_lines(data.get("speed", {}))
    for name, run in data.get("training", {}).items():
        scores = [value for key, value in (run.get("validations") or [{}])[-1].items() if "accuracy" in key]
        said = run.get("error") or f"{run['outcome']} {run['reason']}"
        lines.append(f"recall_full {name}: {said}; last validation {scores or run.get('validation')}")
    return "\n".join(lines)


def conformance_lines(results: dict[str, dict]) -> list[str]:
    lines, failed = [], {}
    for dtype, engine in itertools.product(DTYPES, ("torch", "fla")):
        own = {name: r for name, r in results.items() if f" {dtype} {engine} " in name}
        kinds = Counter(kind(r) for r in own.values())
        if own:
            lines.append(
                f"conformance {dtype} {engine}: {', '.join(f'{n} {what}' for what, n in sorted(kinds.items()))}"
            )
        failed |= {name: r["error"] for name, r in own.items() if kind(r) in ("failed", "too slow")}
    return lines + [f"  {name}: {why}"[:150] for name, why in sorted(failed.items())]


def kind(result: dict) -> str:
    error = result.get("error")
    if error is None:
        return "ok"
    if error.startswith("not reached"):
        return "not reached"
    return "too slow" if error.startswith(("TimeoutError", "hung")) else "failed"


def exactness_lines(results: dict[str, dict]) -> list[str]:
    lines = []
    for name in CASES:
        for dtype, trusted in TRUSTED.items():
            cells = []
            for engine in ("torch", "fla", "own", "forced"):
                r = results.get(f"{name} {dtype} {engine}")
                if r is not None:
                    wrong = " WRONG" if r.get("worst", 0) > trusted or r.get("worst") != r.get("worst") else ""
                    by = "" if engine != "fla" or any("fla" in s for s in r.get("served", {}).values()) else " (torch)"
                    cells.append(f"{engine}{by} " + (r["error"][:60] if "error" in r else f"{r['worst']:.1e}{wrong}"))
            if cells:
                lines.append(f"{name}, {dtype}: {'; '.join(cells)}")
    return lines


def width_lines(results: dict[str, dict]) -> list[str]:
    """How many rows there are, and which are wrong."""
    if not results:
        return []
    wrong = {}
    for name, r in results.items():
        trusted = TRUSTED[next(dtype for dtype in TRUSTED if f" {dtype} " in name)]
        if not r.get("worst", math.nan) <= trusted:
            wrong[name] = r.get("error") or f"off by {r['worst']:.1e}"
    return [f"widths: {len(results)} rows, {len(wrong)} wrong"] + [f"  {n}: {why}"[:150] for n, why in wrong.items()]


def speed_lines(results: dict[str, dict]) -> list[str]:
    if not results:
        return []
    ceilings = results.get("ceilings", {})
    flops, rate = ceilings.get("bf16_tflops", 0) * 1e12, ceilings.get("gb_per_s", 0) * 1e9
    lines = [f"ceilings: {flops / 1e12:.0f} TFLOP/s in bf16, {rate / 1e9:.0f} GB/s; milliseconds below"]
    lengths = list(dict.fromkeys(name.rpartition("T=")[2] for name in results if "T=" in name))
    lines.append(f"T = {' / '.join(lengths)}")
    for name in CASES:
        cells = []
        for engine in ("torch", "fla", "own", "forced"):
            found = [results.get(f"{name} {engine} T={T}") for T in lengths]
            if any(found):
                cells.append(f"{engine} {' / '.join(map(milliseconds, found))}")
        known = [results.get(f"{name} torch T={T}", {}) for T in lengths]
        if rate and any("least_bytes" in r for r in known):
            floors = [1e3 * max(r["least_flops"] / flops, r["least_bytes"] / rate) for r in known if "least_bytes" in r]
            cells.append(f"floor {' / '.join(f'{ms:.2g}' for ms in floors)}")
        if cells:
            lines.append(f"{name}: {'; '.join(cells)}")
    mixers = list(dict.fromkeys(name.split()[1] for name in results if name.startswith("mixer ")))
    for name in mixers:
        found = [results.get(f"mixer {name} T={T}") for T in lengths]
        lines.append(f"mixer {name}: {' / '.join(map(milliseconds, found))}")
    return lines


def milliseconds(result: dict | None) -> str:
    if not result:
        return "-"
    if "error" in result:
        text = result["error"]
        return "memory" if "OutOfMemory" in text else "-" if text.startswith("not reached") else text[:30]
    return f"{result['ms']:.3g}"
