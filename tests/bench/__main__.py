"""`make bench`: every figure beside a peer in the same run, medians of several runs, into bench.json.

The file is written anew after each part.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.figures import Row

# What is measured, in the order of how long it takes. Each has `rows(runs) -> list[Row]`.
PARTS = ("agent", "hostile", "libvirt", "console", "volumes", "nvmetcp", "boot")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs per figure; the median counts (default 3)")
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    arguments = parser.parse_args()
    terminal = Console(highlight=False)
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    for part in arguments.parts:
        terminal.print(f"measuring {part} …")
        began = time.monotonic()
        rows += importlib.import_module(f"tests.bench.bench_{part}").rows(arguments.runs)
        seconds[part] = round(time.monotonic() - began, 1)
        terminal.print(f"[dim]{part} took {seconds[part]:.0f} s[/]")
        found = {"machine": machine, "runs": arguments.runs, "seconds": seconds, "rows": rows}
        replace(arguments.out, json.dumps(found, indent=1) + "\n")  # a run that is stopped keeps these
    terminal.print(show(rows, f"{machine}; medians of {arguments.runs} runs"))
    terminal.print(f"written to {arguments.out} after {sum(seconds.values()):.0f} s")
    return 0


def replace(path: Path, text: str) -> None:
    """Write a file in one step: it is whole whenever somebody looks, or we are stopped."""
    partial = path.with_name(path.name + ".new")
    partial.write_text(text)
    partial.replace(path)


def show(rows: list[Row], title: str) -> Table:
    table = Table("figure", "ours", "peer", "which peer", "ratio", "unit", title=title)
    for row in rows:
        better = "more is better" if row["higher_is_better"] else "less is better"
        table.add_row(
            str(row["name"]),
            number(row["ours"]),
            number(row["peer"]),
            str(row["peer_name"] or "-"),
            number(row["ratio"]),
            f"{row['unit']} ({better})",
        )
    return table


def number(value: object) -> str:
    if not isinstance(value, (int, float)):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
