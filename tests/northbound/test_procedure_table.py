"""docs/libvirt-procedures.md tells what the agent does with each of libvirt's procedures."""

from __future__ import annotations

from pathlib import Path

from hypervisor_shim.procedure_table import table, verdicts
from nicagent.northbound.libvirt import MetalDriver

DOCUMENT = Path(__file__).parents[2] / "docs" / "libvirt-procedures.md"


def test_the_document_is_that_of_the_code() -> None:
    assert DOCUMENT.read_text() == table(MetalDriver), "run `make procedures` and commit what it wrote"


def test_every_refusal_has_a_reason() -> None:
    silent = [key for key, verdict in verdicts(MetalDriver).items() if verdict.code and not verdict.why]
    assert not silent
