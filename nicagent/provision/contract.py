"""What the provision link is told: which cable leads to which host, and what that host shall boot."""

from __future__ import annotations

from typing import Literal

import msgspec

HTTP_PORT = 8080  # on the agent's address of the link: scripts, kernel, initramfs
ARTEFACTS = ("vmlinuz", "stage1.img")  # kernel and initramfs of stage-1
AUTH_ARTEFACTS = ("vmlinuz-auth", "stage1-auth.img")  # the same with a kernel that can do DH-HMAC-CHAP
REPORT_MAX = 256 * 1024  # bytes that a host's stage-1 may tell
NVME_PORT = 4420  # NVMe/TCP, by custom
DISCOVERY_PORT = 8009  # NVMe/TCP discovery, by custom


class ProvisionLink(msgspec.Struct, frozen=True, kw_only=True):
    """One cable between the agent and one host; never shared."""

    host: str
    device: str  # the agent's netdev at its end
    mac: str  # of the host's NIC at the other end, lower case
    agent_address: str  # with prefix length: "172.31.0.1/30"
    host_address: str  # in the same network: "172.31.0.2"
    discovery_port: int = DISCOVERY_PORT  # of the host's target, for a firmware with NVMe-oF boot


class BootChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What a host boots next, and every time until told otherwise.

    `nvme-tcp`: stage-1 attaches the namespace and starts its kernel. `local`: the firmware goes on to its
    next boot device. `none`: nothing to boot.
    """

    link: ProvisionLink
    kind: Literal["nvme-tcp", "local", "none"]
    nqn: str = ""  # of the subsystem
    nsid: int = 1  # of the boot disk in it
    hostnqn: str = ""
    hostid: str = ""
    traddr: str = ""  # of the target, as the host reaches it
    trsvcid: int = NVME_PORT
    secret: str = ""  # what the host proves itself with (DHHC-1:…), empty for nothing
    controller_secret: str = ""  # what it wants proved

    def __repr__(self) -> str:
        return f"BootChoice(kind={self.kind!r}, nqn={self.nqn!r})"  # secrets are in no log

    @property
    def login(self) -> str:
        """The options of Linux' initiator that make it prove itself; empty for none."""
        options = (("dhchap_secret", self.secret), ("dhchap_ctrl_secret", self.controller_secret))
        return ",".join(f"{name}={value}" for name, value in options if value)
