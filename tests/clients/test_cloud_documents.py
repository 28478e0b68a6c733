"""Every cloud's document through a domain's whole life, with the flags that cloud uses."""

from __future__ import annotations

from typing import Any

import libvirt
import pytest

from tests.clients.documents import CLOUDS, Cloud

INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE


@pytest.mark.parametrize("cloud", CLOUDS.values(), ids=CLOUDS)
def test_it_is_defined_started_updated_stopped_and_undefined(conn: Any, cloud: Cloud) -> None:
    domain = conn.defineXMLFlags(cloud.xml, 0)
    assert domain.name() == cloud.domain and domain.isPersistent() and not domain.isActive()
    _holds(cloud, domain.XMLDesc(INACTIVE), "as defined")

    domain.createWithFlags(0)
    _holds(cloud, domain.XMLDesc(0), "while it runs")
    _holds(cloud, domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE), "in the form that clouds migrate with")

    before, after = cloud.changed
    assert before in cloud.xml
    conn.defineXML(cloud.xml.replace(before, after))
    assert domain.isUpdated() and domain.isActive(), "a new definition leaves the run alone"
    inactive = domain.XMLDesc(INACTIVE)
    domain.destroy()
    assert domain.XMLDesc(INACTIVE) == inactive, "the new definition is the next run's"

    again = conn.defineXML(inactive)
    assert again.UUIDString() == domain.UUIDString() and again.XMLDesc(INACTIVE) == inactive
    domain.undefineFlags(cloud.undefine)
    assert cloud.domain not in {each.name() for each in conn.listAllDomains()}


def _holds(cloud: Cloud, document: str, when: str) -> None:
    missing = [text for text in cloud.keeps if text not in document]
    assert not missing, f"{cloud.name} does not find {missing} {when}:\n{document}"


def test_zstacks_memory_is_that_of_its_numa_cells(conn: Any) -> None:
    domain = conn.defineXML(CLOUDS["zstack"].xml)
    assert domain.info()[1] == 4 << 20, "ZStack sends no <memory> when memory may be hot-plugged"
    assert domain.maxVcpus() == 128 and domain.info()[3] == 2


def test_a_passwords_of_a_screen_is_told_only_when_asked(conn: Any) -> None:
    domain = conn.defineXML(CLOUDS["cloudstack"].xml)
    assert "Zq1FpV8w" not in domain.XMLDesc(0)
    assert "Zq1FpV8w" in domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
