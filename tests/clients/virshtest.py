"""libvirt's own table of virsh runs, from 10 on: `tests/virshtest.c` and the expected words beside it.

Its rows are calls of macros: a name, which of two test URIs, virsh's arguments. Older releases have shell
scripts instead. Nothing of it is copied: it is read from libvirt's source when the tests run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_STRING = r'"(?:[^"\\]|\\.)*"'
_COMMENTS = (re.compile(r"/\*.*?\*/", re.S), re.compile(r"^#(?:.*\\\n)*.*$", re.M))
_MACRO = "DO_TEST|DO_TEST_FULL|DO_TEST_SCRIPT|DO_TEST_SCRIPT_FULL|virTestCounterReset"
_CALL = re.compile(rf'^ +({_MACRO})\(((?:{_STRING}|[^"()]|\(\))*)\)', re.M)
_WORDS = {"NULL": "", "VIRSH_DEFAULT": "default", "VIRSH_CUSTOM": "custom"}


@dataclass(frozen=True)
class Run:
    """`custom`: against the node of examples/xml/test, not `test:///default`. Lines that hold `masked` lose
    what follows it. `argv`: what comes after `virsh --connect URI`."""

    name: str
    custom: bool
    masked: str
    argv: tuple[str, ...]
    expected: str

    def differs(self, words: str, code: int) -> bool:
        """Whether virsh's words (both its outputs) and exit code are not what libvirt expects."""
        if code:
            words += f"\n## Exit code: {code}\n"
        return self._mask(words) != self.expected

    def _mask(self, words: str) -> str:
        return re.sub(re.escape(self.masked) + r"[^\n]*", "", words) if self.masked else words


def runs(source: Path) -> Iterator[Run]:
    """All of them, in order; nothing where the source has no such table. `source`: libvirt's, unpacked."""
    data = source / "tests" / "virshtestdata"
    if not data.exists():
        return
    text = (source / "tests" / "virshtest.c").read_text().partition("\nmymain")[2]
    for pattern in _COMMENTS:
        text = pattern.sub("", text)
    series, count = "", 0
    for macro, body in _CALL.findall(text):
        words = _arguments(body, source / "tests")
        if macro == "virTestCounterReset":
            series, count = words[0], 0
            continue
        if macro == "DO_TEST_SCRIPT_FULL":
            del words[1]  # whether it takes long
        if macro == "DO_TEST" or words[0] == "virTestCounterNext()":
            count += 1
        if macro == "DO_TEST":
            words = [f"{series}{count}", "", "default", *words]
        name, masked, uri, *argv = words
        if macro.startswith("DO_TEST_SCRIPT"):
            argv.append((data / f"{name}.in").read_text())
        expected = (data / f"{name}.out").read_text()
        yield Run(name, uri == "custom", masked, tuple(argv), expected)


def _arguments(body: str, tests: Path) -> list[str]:
    """Of a call in C: adjacent strings are one."""
    arguments = [""]
    for token in re.findall(rf"{_STRING}|\w+(?:\(\))?|,", body):
        if token == ",":
            arguments.append("")
        elif token[0] == '"':
            arguments[-1] += ast.literal_eval(token)
        else:
            arguments[-1] += str(tests) if token == "abs_srcdir" else _WORDS.get(token, token)
    return arguments
