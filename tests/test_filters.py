"""The owner of filters: what clients define is durable and all of it is taken, or it is refused by name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hypervisor_shim.xml.nwfilter import PROTOCOLS, parse_filter
from nicagent import filter_tree
from nicagent.errors import Kind, NicagentError
from nicagent.filter_rules import READERS, RULES_MAX, Filter, Reference, Rule, check
from nicagent.filter_tree import DEPTH_MAX, PORT_RULES_MAX, expand, variables_of
from nicagent.filters import Filters
from nicagent.filters_builtin import BUILT_IN
from nicagent.model import Cause, Port, PortBinding
from nicagent.network.contract import RESPONDER
from nicagent.network.filter_nft import program
from nicagent.northbound.libvirt_nwfilter import _filter
from nicagent.store import Store

TESTER = Cause("a tester", "the test asks")
DROP = Rule("drop", "inout")


@asynccontextmanager
async def filters(directory: Path) -> AsyncIterator[Filters]:
    """Leaving it is the agent's death."""
    store = await Store.open(directory / "nicagent.db")
    try:
        owner = Filters(store)
        await owner.load()
        yield owner
    finally:
        await store.close()


def own(name: str, *entries: Rule | str) -> Filter:
    made = tuple(Reference(each) if isinstance(each, str) else each for each in entries)
    return Filter(name, f"id-of-{name}", entries=made)


def port(filter: str, **parameters: tuple[str, ...]) -> PortBinding:
    made = Port("port0", "blue", filter=filter, parameters=tuple(parameters.items()))
    return PortBinding(made, "nic0", "02:00:00:00:00:01", "10.0.0.1", "host")


async def refusal(work: object) -> NicagentError:
    with pytest.raises(NicagentError) as caught:
        await work  # type: ignore[misc]
    return caught.value


async def test_what_a_client_defines_outlives_the_agent(tmp_path: Path) -> None:
    mine = own("mine", "clean-traffic", Rule("accept", "in", "tcp", (("dstportstart", "22"),), negated=True))
    async with filters(tmp_path) as owner:
        await owner.define(mine, TESTER)
    async with filters(tmp_path) as owner:
        assert owner.known["mine"] == mine
        await owner.undefine(mine.uuid, TESTER)
    async with filters(tmp_path) as owner:
        assert owner.known == dict(BUILT_IN)


async def test_names_uuids_and_loops_are_refused(tmp_path: Path) -> None:
    async with filters(tmp_path) as owner:
        await owner.define(own("b", "c"), TESTER)  # of which nobody knows yet
        await owner.define(own("a", "b"), TESTER)
        for wrong, kind, says in (
            (own("c", "a"), Kind.INVALID, "a loop"),
            (Filter("a", "other"), Kind.EXISTS, "already exists with uuid id-of-a"),
            (Filter("z", "id-of-a"), Kind.EXISTS, "same UUID but different name"),
            (own("clean-traffic"), Kind.UNSUPPORTED, "cannot be changed"),
            (own("six", "allow-ipv6"), Kind.UNSUPPORTED, "no IPv6 address"),
        ):
            said = await refusal(owner.define(wrong, TESTER))
            assert said.kind is kind and says in said.message, wrong
        assert sorted(owner.known.keys() - BUILT_IN.keys()) == ["a", "b"]


async def test_a_filter_in_use_stays_and_changes_for_all_ports_or_for_none(tmp_path: Path) -> None:
    told: list[Filter] = []
    async with filters(tmp_path) as owner:
        base, top = own("base", DROP), own("top", "base")
        for each in (base, top):
            await owner.define(each, TESTER)

        async def apply() -> None:
            told.append(owner.known["base"])
            if owner.known["base"].entries == ():
                raise NicagentError(Kind.UNAVAILABLE, "the kernel does not like it")

        owner.serve(lambda: [("domain web on metal-1", port("top", A=("1", "2")))], apply)
        for name in ("base", "top"):
            said = await refusal(owner.undefine(f"id-of-{name}", TESTER))
            assert (said.kind, said.message) == (
                Kind.WRONG_STATE, f"nwfilter is in use: '{name}' by domain web on metal-1",
            )  # fmt: skip
        lacking = own("base", Rule("drop", "out", "tcp", (("dstportstart", "$B"),)))
        said = await refusal(owner.define(lacking, TESTER))
        assert "domain web on metal-1 cannot have it" in said.message and "no value for B" in said.message
        assert told == [] and owner.known["base"] == base, "a port was touched by what was refused"
        await refusal(owner.define(own("base"), TESTER))
        assert [owner.known["base"], told[-1]] == [base, base], "what failed was not taken back"
        changed = own("base", Rule("accept", "in"))
        await owner.define(changed, TESTER)
        assert told[-1] == changed
    async with filters(tmp_path) as owner:
        assert owner.known["base"] == changed


def test_variables_stand_for_facts_and_lists_go_side_by_side_or_all_with_all() -> None:
    def values(*match: tuple[str, str], **parameters: tuple[str, ...]) -> list[dict[str, object]]:
        known = {"f": own("f", Rule("drop", "out", "udp", match))}
        return [dict(each.values) for each in expand("f", known, variables_of(port("f", **parameters)))[0]]

    facts = values(
        ("srcmacaddr", "$MAC"), ("srcipaddr", "$IP"), ("dstipaddr", "$DHCPSERVER"), DHCPSERVER=("9.9.9.9",)
    )
    assert facts == [{"srcmacaddr": "02:00:00:00:00:01", "srcipaddr": "10.0.0.1", "dstipaddr": RESPONDER}]
    lists = {"A": ("1", "2"), "B": ("3", "4")}
    beside = values(("srcportstart", "$A"), ("dstportstart", "$B"), **lists)
    assert [tuple(each.values()) for each in beside] == [(1, 3), (2, 4)]
    crossed = values(("srcportstart", "$A"), ("dstportstart", "$B[@1]"), **lists)
    assert sorted(tuple(each.values()) for each in crossed) == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert values(("srcportstart", "$A[1]"), **lists) == [{"srcportstart": 2}]
    for match, says in (
        (("srcportstart", "$C"), "no value for C"),
        (("srcportstart", "$A[2]"), "no value for A"),
        (("srcipaddr", "$A"), "illegal value 1"),
        (("srcportstart", "$MAC"), "illegal value"),
    ):
        with pytest.raises(NicagentError, match=says):
            values(match, **lists)


def test_everything_is_bounded() -> None:
    chain = {f"f{n}": own(f"f{n}", f"f{n + 1}") for n in range(DEPTH_MAX + 2)}
    with pytest.raises(NicagentError, match="deeper than"):
        expand("f0", chain, {})
    doubling = {f"f{n}": own(f"f{n}", *[f"f{n + 1}"] * 2) for n in range(DEPTH_MAX)} | {"f16": own("f16")}
    many = {"f": own("f", Rule("drop", "out", "udp", (("srcportstart", "$A"), ("dstportstart", "$B[@1]"))))}
    lists = {name: tuple(str(n) for n in range(100)) for name in "AB"}
    for known, name in ((doubling, "f0"), (many, "f")):
        with pytest.raises(NicagentError, match=f"more than {PORT_RULES_MAX} rules"):
            expand(name, known, lists)
    with pytest.raises(NicagentError, match="values of parameters"):
        expand("f", many, {"A": ("1",) * (filter_tree.VALUES_MAX + 1)})
    with pytest.raises(NicagentError, match=f"more than {RULES_MAX} rules"):
        check(own("long", *[DROP] * (RULES_MAX + 1)))


REFUSED = {
    "<vlan vlanid='5'/>": "<vlan>",
    "<stp/>": "<stp>",
    "<rarp opcode='3'/>": "<rarp>",
    "<tcp option='3'/>": "option of <tcp>",
    "<tcp state='NEW'/>": "state of <tcp>",
    "<udp connlimit-above='3'/>": "connlimit-above of <udp>",
    "<all ipset='x' ipsetflags='src'/>": "ipset of <all>",
    "<arp gratuitous='true'/>": "gratuitous of <arp>",
    "<ip srcipmask='8'/>": "srcipmask of <ip>",
    "<tcp dstportend='8'/>": "dstportend of <tcp>",
    "<tcp dstportstart='9' dstportend='8'/>": "lies beyond",
    "<icmp code='0'/>": "code of <icmp>",
    "<icmp match='no' type='8' code='0'/>": "match='no' of type and code",
    "<ipv6 type='128'/>": "type of <ipv6>",
    "<mac srcmacaddr='$'/>": "illegal value",
}


@pytest.mark.parametrize(("about", "names"), REFUSED.items())
def test_what_a_port_cannot_be_held_to_is_refused_by_name(about: str, names: str) -> None:
    xml = f"<filter name='f'><rule action='drop' direction='in'>{about}</rule></filter>"
    with pytest.raises(NicagentError) as caught:
        check(_filter(parse_filter(xml)))
    assert names in caught.value.message and "filter 'f', rule 1" in caught.value.message


def test_actions_directions_and_chains_beyond_a_port_are_refused_by_name() -> None:
    rule = "<rule action='%s' direction='%s'>%s</rule>"
    for xml, names in (
        (rule % ("reject", "in", "<tcp/>"), "action 'reject' of <tcp>"),
        (rule % ("continue", "in", "<all/>"), "action 'continue' of <all>"),
        (rule % ("accept", "inout", "<icmp type='8'/>"), "a type of <icmp> in both directions"),
    ):
        with pytest.raises(NicagentError, match=names):
            check(_filter(parse_filter(f"<filter name='f'>{xml}</filter>")))
    for chain in ("vlan", "stp-x"):
        with pytest.raises(NicagentError, match=f"chain '{chain}'"):
            check(_filter(parse_filter(f"<filter name='f' chain='{chain}'/>")))
    check(
        _filter(
            parse_filter("<filter name='f' chain='ipv4x'><rule action='reject' direction='in'/></filter>")
        )
    )


def test_every_attribute_of_libvirts_language_is_taken_or_refused() -> None:
    """None is passed over: what the documents know, the check knows or names."""
    for protocol, names in PROTOCOLS.items():
        for name in names:
            if name == "comment":
                continue
            rule = Rule("drop", "in", protocol, ((name, "$A"),))
            try:
                check(own("f", rule))
            except NicagentError as refused:
                assert name in refused.message or protocol in refused.message, refused.message
            else:
                assert name in READERS[protocol], f"{name} of <{protocol}> is passed over"


def test_libvirts_well_known_filters_become_rules() -> None:
    for name in BUILT_IN:
        assert program(expand(name, BUILT_IN, variables_of(port(name)))[0]).chains, name
