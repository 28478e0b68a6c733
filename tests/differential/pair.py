"""The two servers that must not be told apart, and how a script of virsh commands is run on both."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import libvirt

from hypervisor_shim.driver import Identity

Call = Callable[[libvirt.virConnect], object]

#: What makes the in-memory driver say of itself what the test driver says.
LIKE_TEST = Identity(
    hypervisor="TEST",
    hypervisor_version=2,
    library_version=9_000_000,
    schemes=frozenset({"test"}),
    paths=frozenset({"/default"}),
    arch="i686",
)


@dataclass(frozen=True)
class Pair:
    """Where each of the two listens."""

    theirs: Path
    ours: Path

    def uris(self) -> tuple[str, str]:
        return f"test+unix:///default?socket={self.theirs}", f"test+unix:///default?socket={self.ours}"

    def differences(
        self,
        commands: Iterable[str],
        text_differs: Mapping[str, str] | None = None,
        exit_differs: Collection[str] = (),
    ) -> list[str]:
        """Run each virsh command on both, in order; what differs though it is not excused.

        `text_differs`: command → why its words may differ (its exit code still may not, unless the command
        is also in `exit_differs`). An excuse that is not needed is told too.
        """
        theirs, ours = self.uris()
        wrong, used = [], set()
        for command in commands:
            expected, got = virsh(theirs, command), virsh(ours, command)
            words = f"$ virsh {command}\n--- libvirtd (exit {expected[0]})\n{expected[1]}"
            words += f"--- ours (exit {got[0]})\n{got[1]}"
            if expected[0] != got[0]:
                used.add(command)
                if command not in exit_differs:
                    wrong.append(words)
            elif expected[1] != got[1]:
                used.add(command)
                if command not in (text_differs or {}):
                    wrong.append(words)
        wrong += [f"excused, but the same: {each}" for each in {*(text_differs or {}), *exit_differs} - used]
        return wrong

    def other_answers(self, calls: Mapping[str, Call], excused: Collection[str] = ()) -> list[str]:
        """Make each call of libvirt-python on both, in order; what differs though it is not excused, and what
        is excused and does not."""
        theirs, ours = (libvirt.open(uri) for uri in self.uris())
        wrong = []
        for what, call in calls.items():
            expected, got = _answer(call, theirs), _answer(call, ours)
            if (expected != got) is not (what in excused):
                wrong.append(f"{what}: libvirtd {expected}, ours {got}")
        theirs.close(), ours.close()
        return wrong


def virsh(uri: str, command: str) -> tuple[int, str]:
    """Exit code and words of one command; what is of the moment (times, the URI) is masked."""
    done = subprocess.run(
        ["virsh", "-c", uri, *command.split()],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    shown = re.sub(r"CPU time: .*", "CPU time: -", done.stdout + done.stderr)
    shown = re.sub(r"(<creationTime>)[0-9]+", r"\1-", shown)
    return done.returncode, shown.replace(uri, "URI")


def _answer(call: Call, conn: libvirt.virConnect) -> object:
    """Its value, or the error's code and sentence (each driver signs with its own name)."""
    try:
        return call(conn)
    except libvirt.libvirtError as refused:
        if refused.get_error_code() == libvirt.VIR_ERR_XML_DETAIL:
            return refused.get_error_code()
        return refused.get_error_code(), refused.get_error_message()
