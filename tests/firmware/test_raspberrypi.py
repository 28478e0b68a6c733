"""The Raspberry Pi's boot fragment, the wiring table and the default pin map say the same."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from gpiozero.pins.pi import PiBoardInfo

from nicagent.config import GpioPower, Line

HERE = Path(__file__).parents[2] / "firmware" / "raspberrypi"
WIRING: dict[str, Any] = tomllib.loads((HERE / "wiring.toml").read_text())
LINES: dict[str, dict[str, Any]] = WIRING["lines"]
BUSES: dict[str, dict[str, Any]] = WIRING["buses"]
SETTINGS = [
    line.strip()
    for line in (HERE / "config.txt.fragment").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]
# Board revision codes: a Raspberry Pi 4B and a 5B.
BOARDS = {"Pi 4": 0xC03111, "Pi 5": 0xC04170}


def at_boot() -> dict[int, list[str]]:
    """What the fragment's gpio= settings make of each pin, in their order."""
    found: dict[int, list[str]] = {}
    for setting in SETTINGS:
        if setting.startswith("gpio="):
            pins, _, attributes = setting.removeprefix("gpio=").partition("=")
            for pin in pins.split(","):
                found.setdefault(int(pin), []).extend(attributes.split(","))
    return found


def test_the_fragment_sets_each_wired_line_as_the_table_says_and_no_other() -> None:
    assert at_boot() == {line["bcm"]: line["boot"] for line in LINES.values()}


def test_the_default_pin_map_follows_the_table() -> None:
    defaults = GpioPower()
    wired = {line["config"]: line for line in LINES.values() if "config" in line}
    assert set(wired) == {"power_button", "reset", "power_led"}
    for key, line in wired.items():
        default: Line = getattr(defaults, key)
        assert default.offset == line["bcm"], f"the default offset of {key} is not what the table wires"
        assert default.active_high == (line["active"] == "high"), f"polarity of {key}"


@pytest.mark.parametrize("name", LINES)
def test_no_line_is_asserted_at_any_moment_of_a_boot(name: str) -> None:
    line = LINES[name]
    # BCM2711 ARM Peripherals, section 5.3: GPIO 0 to 8 are pulled up at reset, 9 to 27 down. RP1 alike.
    assert line["at_reset"] == ("pull-up" if line["bcm"] <= 8 else "pull-down")
    high = {"op": "dh" in line["boot"], "ip": "pu" in line["boot"]}[line["boot"][0]]
    levels = {"reset": line["at_reset"] == "pull-up", "boot": high, "let go": "pd" not in line["boot"]}
    for moment, is_high in levels.items():
        assert is_high != (line["active"] == "high"), f"{name} is asserted at {moment}"


@pytest.mark.parametrize("name", LINES)
def test_direction_at_boot_is_the_direction_of_use(name: str) -> None:
    line = LINES[name]
    assert line["boot"][0] == ("op" if line["direction"] == "out" else "ip")


def test_a_killed_agents_press_ends_with_it() -> None:
    assert "dtparam=strict_gpiod" in SETTINGS


@pytest.mark.parametrize("board", BOARDS)
def test_header_pins_are_where_the_board_has_them(board: str) -> None:
    info = PiBoardInfo.from_revision(BOARDS[board])
    wired = [(line["bcm"], line["pin"]) for line in LINES.values()]
    for bus in BUSES.values():
        wired += zip(bus["bcm"], bus["pin"], strict=True)
    for bcm, pin in wired:
        (found,) = {where.number for header, where in info.find_pin(f"GPIO{bcm}") if header.name == "J8"}
        assert found == pin, f"GPIO{bcm} is on header pin {found}, not {pin}"
    numbers = [bcm for bcm, _ in wired]
    assert len(set(numbers)) == len(numbers), "one pin is wired twice"


@pytest.mark.parametrize("bus", BUSES)
def test_buses_are_switched_on(bus: str) -> None:
    for setting in BUSES[bus]["config_txt"]:
        assert setting in SETTINGS


def test_the_fragment_leaves_no_filter_behind_for_what_follows_it() -> None:
    filters = [setting for setting in SETTINGS if setting.startswith("[")]
    assert SETTINGS[0] == "[all]"
    assert SETTINGS[-1] == "[all]"
    assert set(filters) == {"[all]", "[pi4]", "[pi5]"}


def test_the_readme_shows_the_pins_of_the_table() -> None:
    text = (HERE / "README.md").read_text()
    for name, line in LINES.items():
        assert f"GPIO{line['bcm']} (pin {line['pin']})" in text, f"the wiring picture lacks {name}"
