"""The short run: every kept input again, then a fixed number of new ones from a fixed seed.

`make fuzz SECONDS=…` is the long one; what it finds is kept in `corpus/`, in a folder per target.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hypervisor_shim.frame import Program, packet
from nicagent.northbound.libvirt import MetalDriver
from tests.hypervisor_shim.serving import number

from .metal import Metal
from .rig import Rig, Violation
from .source import Source
from .targets import looks, targets

CORPUS = Path(__file__).parent / "corpus"
EXAMPLES = {
    "frames": 400, "calls": 500, "streams": 250, "codecs": 1500, "handshakes": 150, "logins": 80, "metal": 50,
    "looks": 50, "rights": 200,
}  # fmt: skip
PER_PARSER = 150
TARGETS = targets()
GET_HOSTNAME = 59


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_before_stays_found(name: str) -> None:
    for path in sorted((CORPUS / name).glob("*")):
        TARGETS[name](path.read_bytes())


def test_no_kept_input_is_of_a_target_that_is_gone() -> None:
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} <= set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_does_what_none_may(name: str) -> None:
    @settings(
        max_examples=EXAMPLES.get(name, PER_PARSER),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.binary(min_size=1, max_size=400))
    def run(data: bytes) -> None:
        TARGETS[name](data)

    run()


def test_the_rig_notices_what_must_not_happen() -> None:
    async def breaking(rig: Rig, source: Source) -> None:
        client = rig.client()
        await client.feed(packet(Program.REMOTE, 1, 1, 0, 0, 0, number(0) + number(0)))
        rig.driver.hostname = broken  # type: ignore[method-assign]
        await client.call(GET_HOSTNAME, b"")

    def broken() -> str:
        raise KeyError("a mistake")

    with pytest.raises(Violation, match="procedure 59 failed"):
        Rig().run(breaking, b"")


def test_the_rig_notices_an_agent_that_acts_for_a_reader() -> None:
    class Acting(Metal):
        async def begin(self) -> MetalDriver:
            driver = await super().begin()
            driver.hostname = lambda: self._bodies["metal-1"].acts.append("power off") or "host"  # type: ignore
            return driver

    rig = Rig(Acting(running=False))
    row = list(rig.rows).index((Program.REMOTE, GET_HOSTNAME))
    with pytest.raises(Violation, match=r"made the agent act: .*power off"):
        rig.run(looks, row.to_bytes(2, "big"))
