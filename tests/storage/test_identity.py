"""Identities are a function of the domain, the host and the disk, and of nothing else."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nicagent.errors import Kind, NicagentError
from nicagent.model import Disk, VolumeFormat
from nicagent.storage import identity

DOMAIN = "6a3b3c0e-25b5-4f7c-a8a5-3f0f7f6d2c11"
TARGETS = st.from_regex(r"((vd|sd|xvd)[a-z]{1,2}|nvme[0-3]n[0-9]{1,2}|disk[0-9])", fullmatch=True)


def disk(target: str, serial: str | None = None) -> Disk:
    return Disk(target, f"/pool/{target}", VolumeFormat.RAW, serial=serial)


@given(st.lists(TARGETS, unique=True, max_size=20), st.uuids(), st.text("abc-1", min_size=1, max_size=9))
def test_same_question_same_answer_and_no_two_disks_alike(
    targets: list[str], domain: uuid.UUID, host: str
) -> None:
    disks = [disk(target) for target in targets]
    exports = identity.exports(str(domain), host, disks)
    assert exports == identity.exports(str(domain), host, disks), "deriving twice must be bit-equal"
    for field in ("uuid", "nguid", "eui64", "nsid", "serial"):
        values = [getattr(export.identity, field) for export in exports]
        assert len(set(values)) == len(values), f"two disks share a {field}"
    assert len({export.identity.nqn for export in exports}) <= 1, "a domain's disks live in one subsystem"


@given(TARGETS, st.uuids())
def test_forms_are_those_of_the_specification(target: str, domain: uuid.UUID) -> None:
    (export,) = identity.exports(str(domain), "metal-1", [disk(target)])
    own = export.identity
    assert own.nqn.startswith("nqn.2014-08.org.nvmexpress:uuid:") and uuid.UUID(own.nqn[-36:])
    eui64, nguid = bytes.fromhex(own.eui64), bytes.fromhex(own.nguid)
    assert len(eui64) == 8 and len(nguid) == 16
    assert eui64[0] & 3 == 2, "an EUI-64 without an OUI is locally administered and individual"
    assert nguid[8:] == eui64, "the NGUID ends in the EUI-64"
    assert len(own.serial) == 20 and own.serial.isascii()
    assert uuid.UUID(own.uuid).version == 5
    assert 1 <= own.nsid <= identity.NSID_LIMIT


@pytest.mark.parametrize(
    ("targets", "nsids"),
    [
        (["vda", "vdb"], [1, 2]),
        (["vdb"], [2]),  # not renumbered when vda is taken away
        (["sdc", "vdc"], [3, 1]),
        (["nvme0n1", "nvme0n7"], [1, 7]),
        (["vdaa", "odd"], [27, 1]),
    ],
)
def test_a_namespace_number_follows_the_target(targets: list[str], nsids: list[int]) -> None:
    exports = identity.exports(DOMAIN, "metal-1", [disk(target) for target in targets])
    assert [export.identity.nsid for export in exports] == nsids


def test_a_stored_identity_is_kept_and_its_number_not_given_again() -> None:
    (old,) = identity.exports(DOMAIN, "metal-1", [disk("sda")])
    exports = identity.exports(DOMAIN, "metal-2", [disk("vda"), disk("sda")], {"sda": old.identity})
    assert exports[1].identity == old.identity
    assert exports[0].identity.nsid == 2


def test_a_domain_that_moves_keeps_its_disks_names_in_another_subsystem() -> None:
    (here,) = identity.exports(DOMAIN, "metal-1", [disk("vda")])
    (there,) = identity.exports(DOMAIN, "metal-2", [disk("vda")])
    assert here.identity.uuid == there.identity.uuid and here.identity.nqn != there.identity.nqn


def test_the_disks_own_serial_is_shown() -> None:
    (export,) = identity.exports(DOMAIN, "metal-1", [disk("vda", "root-0042")])
    assert export.identity.serial == "root-0042"


def test_of_a_long_serial_a_device_shows_the_beginning() -> None:
    """Cinder's and ZStack's volumes have UUIDs; a guest of QEMU finds /dev/disk/by-id/virtio-6ca404f3-…"""
    (export,) = identity.exports(DOMAIN, "metal-1", [disk("vda", "6ca404f3-d844-4169-bb96-bc792f37de98")])
    assert export.identity.serial == "6ca404f3-d844-4169-b"


@pytest.mark.parametrize("serial", ["", "wörld", "a\nb"])
def test_a_serial_that_no_device_can_show_is_refused(serial: str) -> None:
    with pytest.raises(NicagentError) as caught:
        identity.exports(DOMAIN, "metal-1", [disk("vda", serial)])
    assert caught.value.kind is Kind.INVALID and "vda" in str(caught.value)


def test_two_disks_with_one_target_are_refused() -> None:
    with pytest.raises(NicagentError) as caught:
        identity.exports(DOMAIN, "metal-1", [disk("vda"), disk("vda")])
    assert caught.value.kind is Kind.INVALID


def test_an_initiator_is_the_machine_and_carries_one_uuid_twice() -> None:
    first = identity.initiator("metal-1", "52:54:00:00:00:01")
    assert first.hostnqn == f"nqn.2014-08.org.nvmexpress:uuid:{first.hostid}"
    assert first == identity.initiator("renamed", "52:54:00:00:00:01"), "the MAC says which machine it is"
    assert first != identity.initiator("metal-1", "52:54:00:00:00:02")
    assert identity.initiator("metal-1") != identity.initiator("metal-2")
