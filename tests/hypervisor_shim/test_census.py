"""The census of procedures is true of the installed libvirt: every function it has is called."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hypervisor_shim.errors import Code
from hypervisor_shim.frame import Program
from hypervisor_shim.memory import MemoryDriver
from hypervisor_shim.procedure_names import CENSUS
from hypervisor_shim.procedure_table import verdicts
from hypervisor_shim.refusals import REFUSALS
from hypervisor_shim.server import make_tables

from . import test_hostile_clients
from .serving import RawClient

#: Called by no function of their own: the rest of the handshake, and a connection that asks for its name.
_BY_NOBODY = {2, 67, 68, 69, 70, 110}


@pytest.fixture(scope="module")
def measured() -> dict[tuple[int, int], set[str]]:
    argv = [sys.executable, "-m", "tests.hypervisor_shim.census"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"the census stopped at: {done.stderr.splitlines()[-1:]}"
    found: dict[tuple[int, int], set[str]] = {}
    for line in done.stdout.splitlines():
        program, procedure, function = line.split()
        found.setdefault((int(program), int(procedure)), set()).add(function)
    return found


def test_each_number_is_what_the_function_of_its_name_calls(
    measured: dict[tuple[int, int], set[str]],
) -> None:
    helper = (Program.REMOTE, 60), (Program.REMOTE, 66)  # asked on the way to something else
    wrong = {
        key: (functions, CENSUS[key[0]].get(key[1]))
        for key, functions in measured.items()
        if CENSUS[key[0]].get(key[1]) not in functions and key not in helper
    }
    assert not wrong, f"(functions that called it, name in the census): {wrong}"


def test_no_number_is_in_the_census_that_nobody_calls(measured: dict[tuple[int, int], set[str]]) -> None:
    called = {number for program, number in measured if program == Program.REMOTE}
    listed = {n for n in CENSUS[Program.REMOTE] if n <= max(called)} - _BY_NOBODY
    assert listed == called, "the census ends where the installed libvirt's functions do, or later"


def test_every_function_that_asks_the_server_something_is_in_the_census(
    measured: dict[tuple[int, int], set[str]],
) -> None:
    assert len(set().union(*measured.values())) > 400, "most of libvirt's functions make a call"


def test_rows_carry_the_name_of_the_census() -> None:
    wrong = [
        (number, entry.procedure.api, CENSUS[program].get(number))
        for program, table in make_tables().by_program.items()
        for number, entry in table.items()
        if entry.procedure.api != CENSUS[program].get(number, entry.procedure.api)
    ]
    assert not wrong, f"(number, the row's name, the census's): {wrong}"


def test_what_no_row_serves_is_refused_as_the_census_says(client: RawClient) -> None:
    rows = make_tables().by_program
    for program, names in CENSUS.items():
        for number, name in names.items():
            if number in rows.get(program, {}):
                continue
            assert name in REFUSALS, f"{name} has neither a row nor a reason"
            answer = client.call(number, program=program)
            assert answer.code == REFUSALS[name].code, f"{name}: {answer.message}"
            assert name in answer.message, "the message names the function"


def test_the_table_tells_what_handlers_and_drivers_can_only_refuse() -> None:
    """One of each kind, of the driver in memory, which serves nearly everything."""
    found = verdicts(MemoryDriver)
    assert found[Program.REMOTE, 16].code == 0, "virDomainGetInfo"
    assert found[Program.REMOTE, 356].code == Code.OPERATION_UNSUPPORTED, "virDomainPinIOThread only raises"
    assert found[Program.LXC, 1].code == Code.NO_SUPPORT, "no row"


def test_names_are_names() -> None:
    for table in CENSUS.values():
        assert all(re.fullmatch(r"vir[A-Z][A-Za-z0-9]+", name) for name in table.values())


def test_every_class_of_attack_has_the_tests_that_it_names() -> None:
    """The list in test_hostile_clients.py is not a wish."""
    folder = Path(__file__).parent
    listed = re.findall(r"\b(?:R |C )?([a-z0-9]+(?:_[a-z0-9]+){3,})\b", test_hostile_clients.__doc__ or "")
    source = "".join(path.read_text() for path in folder.glob("test_hostile_*.py"))
    names = [name for name in listed if not name.startswith("test_")]
    assert len(names) > 20
    assert not [name for name in names if f"def test_{name}(" not in source]
