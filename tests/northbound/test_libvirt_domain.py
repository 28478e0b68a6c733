"""Between libvirt's words and ours."""

from __future__ import annotations

import pytest

from hypervisor_shim.xml.domain import parse_domain
from nicagent.northbound.libvirt_domain import to_domain

PIN = (
    "<metadata><{0}domain xmlns{1}='urn:nicagent:domain:1'><{0}host>metal-2</{0}host>"
    "<{0}tenant> blue </{0}tenant></{0}domain></metadata>"
)


@pytest.mark.parametrize(("prefix", "declared"), [("nic:", ":nic"), ("x:", ":x"), ("", "")])
def test_metadata_tells_a_domains_host_and_tenant_whatever_the_clients_prefix(
    prefix: str, declared: str
) -> None:
    text = "<domain type='kvm'><name>a</name><memory>1024</memory><os><type>hvm</type></os>{}</domain>"
    definition = parse_domain(text.format(PIN.format(prefix, declared)))
    made, plain = to_domain(definition, {}), to_domain(parse_domain(text.format("")), {})
    assert (made.host, made.tenant) == ("metal-2", "blue")
    assert (plain.host, plain.tenant) == (None, None)
