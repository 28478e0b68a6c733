"""The agent's pools beside those of libvirtd's real storage driver, by the same virsh script: what succeeds
there succeeds here, what is refused there is refused here. Sentences of refusals are each one's own.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypervisor_shim.memory import MemoryDriver
from tests.differential.pair import virsh
from tests.differential.versions import excuses
from tests.hypervisor_shim import libvirtd as peer
from tests.hypervisor_shim.serving import serving
from tests.northbound.test_libvirt_storage import Agent

#: {at} is a directory of each one's own, {content} a file of 3 MiB that is no image.
SCRIPT = """\
pool-define-as p dir --target {at}/p
pool-dumpxml p
pool-start p
pool-build p
pool-build p
pool-start p
pool-start p
pool-build p
pool-info p
pool-list --all
pool-autostart p
pool-autostart p --disable
pool-undefine p
pool-delete p
pool-define-as q dir --target {at}/p
pool-define-as p dir --target {at}/other
pool-create-as q dir --target {at}/q
pool-create-as q dir --target {at}/q --build
pool-autostart q
pool-undefine q
pool-destroy q
pool-info q
pool-refresh p
pool-refresh nobody
vol-create-as p raw 4M --format raw --allocation 0
vol-create-as p full 1M --format raw
vol-create-as p grows 8M --format qcow2
vol-create-as p raw 4M
vol-create-as p a/b 4M
vol-create-as p over 4M --format qcow2 --backing-vol raw --backing-vol-format raw
vol-create-as p over2 4M --format raw --backing-vol raw --backing-vol-format raw
vol-create-as p odd 4Q
vol-list p
vol-info raw p
vol-info full p
vol-info nothing p
vol-dumpxml raw p
vol-path raw p
vol-name {at}/p/raw
vol-key raw p
vol-pool {at}/p/raw
vol-info {at}/p/raw
vol-info {at}/p/nothing
vol-resize grows 16M p
vol-resize grows 4M p
vol-resize grows 4M p --shrink
vol-resize full 1M p --delta
vol-resize full 0 p
vol-info full p
vol-info grows p
vol-upload full {content} p
vol-upload full {content} p --length 100 --offset 512
vol-upload full {content} p --length 3145728
vol-download full {at}/out p
vol-download full {at}/out p --offset 100 --length 1000
vol-upload nothing {content} p
vol-clone full copy p
vol-clone full copy p
vol-clone nothing copy2 p
vol-wipe copy p
vol-wipe copy p --algorithm trim
vol-delete copy p
vol-delete copy p
vol-delete copy p --delete-snapshots
vol-delete over p
vol-list p
pool-destroy p
vol-list p
vol-info raw p
pool-delete p
pool-undefine p
pool-list --all
pool-capabilities
find-storage-pool-sources dir
"""

#: Where the outcome differs, and why that is right.
DIFFERS = {
    "pool-list --all": "the agent has the pool of its config beside",
    "pool-capabilities": "one type of pools and two formats are served here, and said",
}


def masked(text: str, at: Path) -> str:
    """Without what is of the moment: UUIDs, times, the room of the machine's disk."""
    text = text.replace(str(at), "AT")
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", text)
    text = re.sub(r"(?m)^.*<(atime|mtime|ctime|btime|allocation|available|capacity).*\n(?=.*)", "", text)
    return re.sub(r"(?m)^(Allocation|Available|Capacity):.*$", r"\1", text)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    for name in ("default", "roots", "s"):
        (tmp_path / name).mkdir()
    with serving(MemoryDriver(), tmp_path / "s") as served:
        agent = Agent(tmp_path, served)
        agent.start()
        yield agent
        agent.stop()


def test_what_libvirtds_own_pools_do_ours_do(agent: Agent, tmp_path: Path) -> None:
    content = tmp_path / "content"
    content.write_bytes(b"content!" * (3 << 17))
    wrong, used = [], set()
    not_asked = excuses("metal_storage")  # of libvirtd: it would be its end
    with (
        tempfile.TemporaryDirectory(prefix="lv-") as directory,
        peer.libvirtd(Path(directory), ["storage"]) as daemon,
    ):
        theirs, ours = tmp_path / "peers", agent.home / "roots"  # as long as each other
        theirs.mkdir()
        for line in SCRIPT.splitlines():
            shown = []
            for uri, at in (
                (f"storage+unix:///system?socket={daemon.path}", theirs),
                (agent.served.uri, ours),
            ):
                if line in not_asked and at is theirs:
                    shown.append((1, "refused"))
                    continue
                code, words = virsh(uri, line.format(at=at, content=content))
                shown.append((code, masked(words, at) if code == 0 else "refused"))
            if shown[0] == shown[1]:
                continue
            used.add(line)
            if line not in DIFFERS:
                wrong.append(f"$ {line}\n--- libvirtd {shown[0]}\n--- ours {shown[1]}")
    wrong += [f"excused, but the same: {line}" for line in DIFFERS.keys() - used]
    assert not wrong, "\n".join(wrong)
