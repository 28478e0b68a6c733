"""virt-install, virt-xml and virt-clone, with the words an operator types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import qemu_uri
from tests.clients.programs import program, run
from tests.hypervisor_shim.serving import Served


@pytest.mark.parametrize("scheme", ["nic", "qemu"])
def test_a_server_is_installed_edited_and_cloned(agent: Served, conn: Any, home: Path, scheme: str) -> None:
    uri = agent.uri if scheme == "nic" else qemu_uri(agent)
    run(
        [program("virt-install"), "--connect", uri, "--name", "web", "--memory", "1024", "--vcpus", "2",
         "--import", "--disk", "pool=default-pool,size=1,format=raw", "--network", "network=default",
         "--osinfo", "debian11", "--graphics", "none", "--noautoconsole"],
        home,
    )  # fmt: skip
    web = conn.lookupByName("web")
    assert web.isActive() and web.isPersistent() and web.info()[1] == 1 << 20
    document = web.XMLDesc()
    assert "<source network='default'" in document and "web.img" in document
    assert "http://debian.org/debian/11" in document, "the operating system is kept in the metadata"

    web.destroy()
    edit = [program("virt-xml"), "--connect", uri, "web"]
    run([*edit, "--edit", "--memory", "2048"], home)
    run([*edit, "--edit", "--metadata", "title=Front end"], home)
    run([*edit, "--add-device", "--disk", "pool=default-pool,size=1,format=raw"], home)
    run([*edit, "--remove-device", "--network", "1"], home)
    document = web.XMLDesc()
    assert web.info()[1] == 2 << 20 and "<title>Front end</title>" in document
    assert document.count("<disk ") == 2 and "<interface" not in document

    run(
        [program("virt-clone"), "--connect", uri, "--original", "web", "--name", "web-2", "--auto-clone"],
        home,
    )
    clone = conn.lookupByName("web-2")
    assert clone.UUIDString() != web.UUIDString()
    assert "web-clone" in clone.XMLDesc() or "web-2" in clone.XMLDesc(), "a clone has volumes of its own"
