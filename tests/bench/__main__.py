"""`make bench`: every figure beside a peer in the same run, medians of several runs, into bench.json."""

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

# What is measured, in the order of how long it takes. Each has `rows(runs) -> list of rows`.
PARTS = ("agent", "hostile", "libvirt", "console", "volumes", "nvmetcp", "boot")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs per figure; the median counts (default 3)")
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    arguments = parser.parse_args()
    terminal = Console(highlight=False)
    rows: list[dict[str, object]] = []
    began = time.monotonic()
    for part in arguments.parts:
        terminal.print(f"[dim]{time.monotonic() - began:6.1f} s[/]  measuring {part} …")
        rows += importlib.import_module(f"tests.bench.bench_{part}").rows(arguments.runs)
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )
    arguments.out.write_text(
        json.dumps({"machine": machine, "runs": arguments.runs, "rows": rows}, indent=1) + "\n"
    )
    terminal.print(show(rows, f"{machine}; medians of {arguments.runs} runs"))
    terminal.print(f"written to {arguments.out} after {time.monotonic() - began:.0f} s")
    return 0


def show(rows: list[dict[str, object]], title: str) -> Table:
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
