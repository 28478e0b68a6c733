"""The table of all of libvirt's procedures and of what becomes of a call to each, for one driver.

    python -m hypervisor_shim.procedure_table nicagent.northbound.libvirt:MetalDriver OUT.md

writes it; a test writes it again and compares. Nothing is called: it is read from the code. A procedure is
refused if it has no row; if its handler can do nothing but raise; or if the part of the driver that it hands
on to is not there, or its method can do nothing but raise. Anything else is real, which says nothing about
the conditions under which it succeeds.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import sys
import textwrap
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from hypervisor_shim.driver import Driver
from hypervisor_shim.errors import Code
from hypervisor_shim.frame import Program
from hypervisor_shim.procedure_names import CENSUS
from hypervisor_shim.procedures import Procedure
from hypervisor_shim.refusals import REFUSALS
from hypervisor_shim.server import make_tables

_TITLES = {Program.REMOTE: "remote", Program.QEMU: "qemu", Program.LXC: "lxc"}
_REFUSING = frozenset(
    (Code.NO_SUPPORT, Code.OPERATION_UNSUPPORTED, Code.ARGUMENT_UNSUPPORTED, Code.OPERATION_INVALID)
)
_NAMED = {code.name: code for code in Code}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a call; `code` 0: it is real."""

    code: int
    why: str = ""


_REAL = Verdict(0)
_DEFAULT = Verdict(Code.NO_SUPPORT, "the driver does not do it")


def verdicts(driver: type[Driver]) -> dict[tuple[int, int], Verdict]:
    """(program, procedure) → what becomes of it."""
    rows = make_tables().by_program
    found = {}
    for program, names in CENSUS.items():
        for number, name in names.items():
            entry = rows.get(program, {}).get(number)
            if entry is None:
                refusal = REFUSALS[name]
                found[program, number] = Verdict(refusal.code, refusal.why)
            else:
                found[program, number] = _worded(_of_row(entry.procedure, driver))
    return found


def _worded(verdict: Verdict) -> Verdict:
    """Where the sentence is put together at run time, what of it stands in the code."""
    if verdict.code and verdict.why in ("", "…"):
        return Verdict(verdict.code, "the error's own sentence says why")
    return Verdict(verdict.code, verdict.why.replace("…", "it", 1) if verdict.why[:1] == "…" else verdict.why)


# ---- a row -----------------------------------------------------------------------------------------------


def _of_row(row: Procedure, driver: type[Driver]) -> Verdict:
    handler = _always_raises(row.handler)
    if handler is not None:
        return handler
    words = set(_words(row.handler))
    parts = [name for name in _parts() if name in words]
    made = _parts_of(driver)
    for part in parts:
        kind = made.get(part)
        if kind is None:
            return Verdict(Code.NO_SUPPORT, f"the driver does not serve {part.replace('_', ' ')}")
        methods = [name for name in _methods(_parts()[part]) if name in words]
        refusals = [found for name in methods if (found := _always_raises(getattr(kind, name))) is not None]
        if refusals and len(refusals) == len(methods):
            return refusals[0]
    if not parts:
        for name in _methods(Driver):
            if name in words and (refusal := _always_raises(getattr(driver, name))) is not None:
                return refusal
    return _REAL


@cache
def _parts() -> dict[str, type[Any]]:
    """The attributes of `Driver` that are contracts of their own."""
    return {
        name: kind
        for name, hint in typing.get_type_hints(Driver).items()
        for kind in typing.get_args(hint)
        if isinstance(kind, type) and kind is not type(None)
    }


def _methods(contract: type[Any]) -> list[str]:
    return [name for name, member in vars(contract).items() if inspect.isfunction(member) and name[0] != "_"]


@cache
def _parts_of(driver: type[Driver]) -> dict[str, type[Any]]:
    """The classes of the parts that `driver` makes in its __init__ (`self.storage = MetalStorage(…)`)."""
    module = sys.modules[driver.__module__]
    found: dict[str, type[Any]] = {}
    for node in ast.walk(_tree(driver.__init__)):
        if not isinstance(node, ast.Assign):
            continue
        made: Any = None
        if isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name):
            made = getattr(module, node.value.func.id, None)
        elif isinstance(node.value, ast.Attribute):  # by another of its names
            made = found.get(node.value.attr)
        for target in node.targets:
            if isinstance(target, ast.Attribute) and isinstance(made, type):
                found[target.attr] = made
    return found


# ---- what a function does ---------------------------------------------------------------------------------


def _words(function: Any, seen: set[int] | None = None) -> Iterator[str]:
    """Every name and attribute that a handler uses, its helpers' included."""
    seen = set() if seen is None else seen
    function = inspect.unwrap(getattr(function, "func", function))
    if not isinstance(function, FunctionType) or id(function) in seen:
        return
    seen.add(id(function))
    for code in _codes(function.__code__):
        yield from code.co_names
        for name in code.co_names:
            helper = function.__globals__.get(name)
            if inspect.isfunction(helper) and helper.__module__.startswith("hypervisor_shim.calls"):
                yield from _words(helper, seen)
    for cell in function.__closure__ or ():
        yield from _words(cell.cell_contents, seen)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


@cache
def _tree(function: Callable[..., Any]) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def _always_raises(function: Callable[..., Any]) -> Verdict | None:
    """The refusal, if `function` has no way out but an error at its end."""
    if not inspect.isfunction(function) or function.__name__ == "<lambda>":
        return None
    definition = _tree(function).body[0]
    assert isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef)
    nodes = list(ast.walk(definition))
    if any(isinstance(node, ast.Return | ast.Yield) for node in nodes):
        return None
    last = definition.body[-1]
    if isinstance(last, ast.Raise) and isinstance(last.exc, ast.Call):
        return _refusal(last.exc, function)
    if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call):  # of a helper that never returns
        helper = _helper(last.value, function)
        return _refusal(last.value, function) if helper is not None and _never_returns(helper) else None
    return None


def _never_returns(function: FunctionType) -> bool:
    return function.__annotations__.get("return") in ("NoReturn", "Never")


def _helper(call: ast.Call, function: Callable[..., Any]) -> FunctionType | None:
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    found = getattr(function, "__globals__", {}).get(name)
    return found if isinstance(found, FunctionType) else None


def _refusal(call: ast.Call, function: Callable[..., Any]) -> Verdict | None:
    """What `error(Code.X, "why")` or a helper that makes such an error says."""
    named = [each.attr for each in call.args if isinstance(each, ast.Attribute)]
    codes = [_NAMED[name] for name in named if name in _NAMED]
    why = " ".join(text for each in call.args if (text := _text(each, function)))
    if codes:
        if codes[0] not in _REFUSING:
            return None
        says_nothing = why in ("", "…") or why.startswith("vir")
        return _DEFAULT if codes[0] is Code.NO_SUPPORT and says_nothing else Verdict(codes[0], why)
    helper = _helper(call, function)
    if helper is None:
        return None
    for node in ast.walk(_tree(helper)):
        made = (
            node.exc if isinstance(node, ast.Raise) else node.value if isinstance(node, ast.Return) else None
        )
        inner = _refusal(made, helper) if isinstance(made, ast.Call) else None
        if inner is None:
            continue
        if inner.code == Code.NO_SUPPORT:
            return _DEFAULT
        return Verdict(inner.code, inner.why.replace("…", why, 1) if "…" in inner.why else why or inner.why)
    return None


def _text(node: ast.expr, function: Callable[..., Any]) -> str:
    """A sentence, also by the name of a constant; what is put into it at run time is an ellipsis."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Name):
        known = getattr(function, "__globals__", {}).get(node.id, "…")
        return known if isinstance(known, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(each.value) if isinstance(each, ast.Constant) else "…" for each in node.values)
    return ""


# ---- the table --------------------------------------------------------------------------------------------


_HEAD = """\
# libvirt's procedures, and what becomes of a call to each

Written by `make procedures`; do not edit. Of {all} procedures of libvirt, up to those of
11.3, {real} are real; refused are {refused}.

- Code 3 is libvirt's "this function is not supported by the connection driver", with the function's name;
  84 is "Operation not supported" with a sentence that says why; 55 is "Requested operation is not valid".
- Numbers that are missing are events, which only the server sends, and gaps: a call to one gets code 39.
- Real means: it does what libvirt says it does, as far as it is true of the driver. A single flag, or a kind
  of object, may still be refused, with a sentence that says so.
"""


def table(driver: type[Driver]) -> str:
    """The whole document."""
    found = verdicts(driver)
    counts = Counter(int(verdict.code) for verdict in found.values())
    refused = ", ".join(f"{count} with code {code}" for code, count in sorted(counts.items()) if code)
    parts = [_HEAD.format(all=len(found), real=counts[0], refused=refused)]
    for program, names in CENSUS.items():
        lines = [f"## Program {_TITLES[Program(program)]} ({program:#x})", ""]
        lines += ["| number | function | answer | why |", "|---|---|---|---|"]
        for number, name in sorted(names.items()):
            verdict = found[program, number]
            answer = f"refused, {int(verdict.code)}" if verdict.code else "real"
            lines.append(f"| {number} | {name} | {answer} | {verdict.why} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m hypervisor_shim.procedure_table")
    parser.add_argument("driver", help="module:class of the driver")
    parser.add_argument("out", type=Path, help="the document to write")
    arguments = parser.parse_args()
    module, _, name = arguments.driver.partition(":")
    arguments.out.write_text(table(getattr(importlib.import_module(module), name)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
