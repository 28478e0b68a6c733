"""The iPXE script of one host, a pure function of its link and its boot choice (ipxe.org/scripting)."""

from __future__ import annotations

import re
from ipaddress import IPv4Interface

from nicagent.errors import Kind, NicagentError
from nicagent.provision.contract import ARTEFACTS, AUTH_ARTEFACTS, HTTP_PORT, BootChoice, ProvisionLink

RETRY_SECONDS = 5  # between a host's questions while there is no answer yet
# What may stand in a script or on a kernel's command line without meaning something else there.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*")


def url(link: ProvisionLink, name: str) -> str:
    """Where the host finds `name` on its own link."""
    return f"http://{IPv4Interface(link.agent_address).ip}:{HTTP_PORT}/boot/{name}"


def render(link: ProvisionLink, choice: BootChoice | None, *, known: bool = True) -> str:
    """The script. `known` is False while the agent has not yet been told what the host shall boot.

    Raises INVALID when a value could break out of its place in the script.
    """
    if not known:
        return _again(link, "the agent does not know yet what to boot")
    if choice is None or choice.kind == "none":
        return f"#!ipxe\necho nicagent: {link.host} has nothing to boot\nexit\n"
    if choice.kind == "local":
        return f"#!ipxe\necho nicagent: {link.host} boots from its own disk\nexit\n"
    words = " ".join(f"nicagent.{key}={_plain(key, value)}" for key, value in _parameters(link, choice))
    kernel, initramfs = boot_files(choice)
    return (
        "#!ipxe\n"
        f"echo nicagent: {link.host} boots {choice.nqn}\n"
        # UEFI hands the kernel no initramfs by itself: its stub looks for initrd= among iPXE's images.
        f"kernel {url(link, kernel)} initrd=stage1.img quiet console=ttyS0,115200 {words} || goto again\n"
        f"initrd --name stage1.img {url(link, initramfs)} || goto again\n"
        "boot || goto again\n"
        ":again\n" + _loop(link, "the boot files cannot be had")
    )


def boot_files(choice: BootChoice | None) -> tuple[str, str]:
    """Kernel and initramfs of stage-1 for a choice. Only a newer kernel's initiator can prove itself."""
    return AUTH_ARTEFACTS if choice is not None and choice.secret else ARTEFACTS


def _parameters(link: ProvisionLink, choice: BootChoice) -> list[tuple[str, str]]:
    prefix = IPv4Interface(link.agent_address).network.prefixlen
    return [
        ("mac", link.mac),
        ("ip", f"{link.host_address}/{prefix}"),
        ("traddr", choice.traddr),
        ("trsvcid", str(choice.trsvcid)),
        ("nqn", choice.nqn),
        ("nsid", str(choice.nsid)),
        ("hostnqn", choice.hostnqn),
        ("hostid", choice.hostid),
        (
            "agent",
            f"{IPv4Interface(link.agent_address).ip}:{HTTP_PORT}",
        ),  # that wants to know what it is made of
        *([("auth", "1")] if choice.secret else []),  # the key itself: a command line is for all to read
    ]


def _plain(key: str, value: str) -> str:
    if not _PLAIN.fullmatch(value):
        raise NicagentError(
            Kind.INVALID,
            f"the boot choice's {key} {value!r} cannot stand on a kernel command line",
            "use letters, digits and . _ : / -",
        )
    return value


def _again(link: ProvisionLink, why: str) -> str:
    return "#!ipxe\n" + _loop(link, why)


def _loop(link: ProvisionLink, why: str) -> str:
    """Ask for a fresh script until one comes: facts may have changed, and the agent may be restarting."""
    fresh = url(link, f"{link.host}.ipxe")
    return (
        f"echo nicagent: {why}; asking again every {RETRY_SECONDS} s\n"
        f":ask\nsleep {RETRY_SECONDS}\nchain --replace --autofree {fresh} || goto ask\n"
    )
