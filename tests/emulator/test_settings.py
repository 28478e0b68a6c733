"""A wrong lab file is told with the key at fault and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from nicagent.emulator.settings import load_lab, place
from nicagent.errors import Kind, NicagentError

GOOD = """
netns = ["agent"]
[[cables]]
ends = [{device = "a0", netns = "agent", addresses = ["192.0.2.1/24"]}, {device = "b0"}]
[[chassis]]
name = "metal-1"
pcie_slot = "{run_dir}/slots/metal-1"
nics = [{mac = "52:54:00:00:00:01", tap = "prov0", netns = "agent", boot = true}]
[chassis.bmc]
address = "192.0.2.9"
"""


def lab_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "lab.toml"
    path.write_text(text)
    return path


def test_a_good_file_and_its_run_directory(tmp_path: Path) -> None:
    lab = place(load_lab(lab_file(tmp_path, GOOD)), Path("/x"))
    assert lab.run_dir == "/x"
    chassis = lab.chassis[0]
    assert chassis.pcie_slot == "/x/slots/metal-1"
    assert chassis.front_panel.power_button == 23 and chassis.front_panel.on_holder_death == "keep"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "metal-1"', 'nmae = "metal-1"', "nmae"),
        ("boot = true", 'boot = "yes"', r"chassis\[0\]\.nics\[0\]\.boot: Expected"),
        ("52:54:00:00:00:01", "52-54", r"nics\[0\]\.mac"),
        (
            'tap = "prov0", netns = "agent"',
            'tap = "prov0", netns = "nowhere"',
            "netns nowhere, which",
        ),
        (
            'device = "b0"',
            'device = "prov0", netns = "agent"',
            "device prov0 in netns agent is used 2",
        ),
        ("192.0.2.1/24", "192.0.2.300/24", "cable end a0"),
        ("192.0.2.9", "bmc.example", "BMC of chassis metal-1"),
        ('["agent"]', '["agent", "agent"]', "netns agent is used 2 times"),
        ("[chassis.bmc]", "[chassis.front_panel]\nreset = 23\n[chassis.bmc]", "line 23 is used 2 times"),
        ("netns = [", "netns = [[", "is not TOML|Expected"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(NicagentError, match=said) as wrong:
        load_lab(lab_file(tmp_path, GOOD.replace(old, new, 1)))
    assert wrong.value.kind is Kind.INVALID and wrong.value.hint


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NicagentError, match="cannot read the lab file"):
        load_lab(tmp_path / "nowhere.toml")
