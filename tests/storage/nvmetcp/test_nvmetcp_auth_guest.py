"""Linux' own initiator proves itself to the target, and has the target prove itself: one boot, every case."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chap import secret
from guest import STEP_TIMEOUT, Guest
from target_process import HOST, NQN, TargetProcess

from images.guest_kernel import newer_guest_kernel

KEY, CONTROLLER_KEY, WRONG = secret(1), secret(2), secret(9)
LONG, TRANSFORMED = secret(3, 64, 3), secret(4, 48, 2)
BOTH = {"key": KEY, "controller_key": CONTROLLER_KEY}


def host(key: str, controller_key: str = "") -> str:
    """The initiator's options."""
    return f",dhchap_secret={key}" + (f",dhchap_ctrl_secret={controller_key}" if controller_key else "")


# What the target asks for, what the initiator has, and what comes of it: None for nothing, or what it says of
# the proof on its admin queue.
CASES: dict[str, tuple[dict[str, Any] | None, str, str | None]] = {
    "the right key": ({"key": KEY}, host(KEY), "hmac(sha256) ffdhe2048"),
    "another key": ({"key": KEY}, host(WRONG), None),
    "no key": ({"key": KEY}, "", None),
    "a key that nobody asks for": (None, host(KEY), ""),
    "both sides": (BOTH, host(KEY, CONTROLLER_KEY), "hmac(sha256) ffdhe2048"),
    "a controller that proves nothing": (BOTH, host(KEY, WRONG), None),
    "a controller without a key": ({"key": KEY}, host(KEY, CONTROLLER_KEY), None),
    "the null group": ({**BOTH, "groups": ["null"]}, host(KEY, CONTROLLER_KEY), "hmac(sha256) null"),
    "transformed keys": (
        {"key": LONG, "controller_key": TRANSFORMED, "hashes": ["sha512"], "groups": ["ffdhe3072"]},
        host(LONG, TRANSFORMED),
        "hmac(sha512) ffdhe3072",
    ),
    "the largest group": (
        {**BOTH, "hashes": ["sha384"], "groups": ["ffdhe4096"]},
        host(KEY, CONTROLLER_KEY),
        "hmac(sha384) ffdhe4096",
    ),
}


@pytest.fixture
def guest(tmp_path: Path, target: TargetProcess) -> Iterator[Guest]:
    words = f"t_port={target.port} t_nqn={NQN} t_host={HOST}"
    running = Guest(tmp_path, newer_guest_kernel(), "guest_auth_init.sh", words)
    yield running
    running.close()


@pytest.mark.guest
def test_linux_proves_itself(guest: Guest, target: TargetProcess, disk: Path) -> None:
    content = hashlib.md5(disk.read_bytes()).hexdigest()
    guest.line("kernel 6.12")
    for name, (auth, options, proof) in CASES.items():
        target.auth = auth
        assert target.reload()["ok"], name
        guest.go_on(f"try {options}")
        expected = "refused" if proof is None else f"in {content} {proof}".strip()
        assert guest.line("").strip() == expected, f"{name}: {target.log.read_text()}"

    target.auth = BOTH
    target.reload()
    guest.go_on(f"stay {host(KEY, CONTROLLER_KEY)}")
    assert guest.line("in") == content
    (controller,) = target.status()["controllers"]
    assert controller["queues"] == [0, 1, 2] and controller["authenticated"], "every queue has proved itself"
    target.auth = {**BOTH, "key": LONG}
    target.reload()
    guest.go_on("read")
    assert guest.line("read") == content, "a new key does not disturb who is there"
    guest.go_on(f"prove {LONG}")
    assert guest.line("proved").split() == ["hmac(sha256)", "ffdhe2048", content], "a live host takes it"
    assert target.status()["controllers"] == [controller]
    guest.go_on("end")
    guest.line("done")
    assert guest.process.wait(STEP_TIMEOUT) == 0
