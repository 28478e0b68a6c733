"""A port's filter with all that it refers to: as rules whose variables have their values. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from nicagent.errors import Kind, NicagentError, Thing
from nicagent.filter_rules import Filter, Names, Reference, Rule, Value, coherent, read, says, variable
from nicagent.model import PortBinding
from nicagent.network.contract import RESPONDER

DEPTH_MAX = 16  # of references
PORT_RULES_MAX = 4096  # of one port, each value of a list counted, and each reference
VALUES_MAX = 1024  # of the variables of one port

Variables = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Placed:
    """A rule of a port, in its chain. `values` are read: numbers, and addresses in their usual form."""

    rule: Rule
    chain: str
    chain_priority: int
    values: Mapping[str, Value]


@dataclass
class _Walk:
    known: Mapping[str, Filter]
    rules: list[Placed] = field(default_factory=list)
    met: dict[str, Filter] = field(default_factory=dict)
    steps: int = 0

    def step(self, where: str) -> None:
        self.steps += 1
        if self.steps > PORT_RULES_MAX:
            raise NicagentError(
                Kind.UNSUPPORTED,
                f"{where} comes to more than {PORT_RULES_MAX} rules for one port",
                "make it smaller",
            )


def variables_of(binding: PortBinding) -> Variables:
    """What the variables of its filter stand for at a port. Three are facts, whatever a client says: the
    port's MAC, its one address, and the address of the only DHCP server that it hears.
    """
    facts = {"MAC": (binding.mac,), "IP": (binding.ipv4,), "DHCPSERVER": (RESPONDER,)}
    return {**dict(binding.port.parameters), **facts}


def expand(
    name: str, known: Mapping[str, Filter], variables: Variables
) -> tuple[list[Placed], Mapping[str, Filter]]:
    """The rules of a port that names this filter, in the order of the documents, and all filters met.

    Raises NOT_FOUND (a filter), INVALID (a variable without a value, a value that is none of its kind),
    UNSUPPORTED (too deep, too many).
    """
    if sum(len(values) for values in variables.values()) > VALUES_MAX:
        raise NicagentError(Kind.UNSUPPORTED, f"filter '{name}': more than {VALUES_MAX} values of parameters")
    walk = _Walk(known)
    _enter(walk, name, variables, 0)
    return walk.rules, walk.met


def leads_back(filter: Filter, known: Mapping[str, Filter]) -> bool:
    """Whether this filter's references lead to itself."""
    return filter.name in reached(filter, known)


def reached(filter: Filter, known: Mapping[str, Filter]) -> set[str]:
    """The names of all filters that this one is made of, whether they are known or not."""
    ahead, seen = list(filter.refers), set[str]()
    while ahead:
        name = ahead.pop()
        if name not in seen:
            seen.add(name)
            ahead += known[name].refers if name in known else ()
    return seen


def _enter(walk: _Walk, name: str, variables: Variables, depth: int) -> None:
    filter = walk.known.get(name)
    if filter is None:
        raise NicagentError(
            Kind.NOT_FOUND,
            f"referenced filter '{name}' is missing",
            "see virsh nwfilter-list",
            of=Thing.FILTER,
        )
    if depth > DEPTH_MAX:
        raise NicagentError(Kind.UNSUPPORTED, f"filter '{name}': references lead deeper than {DEPTH_MAX}")
    walk.met[name] = filter
    for number, entry in enumerate(filter.entries, start=1):
        walk.step(f"filter '{name}'")
        if isinstance(entry, Reference):
            _enter(walk, entry.filter, {**dict(entry.parameters), **variables}, depth + 1)
            continue
        where = f"filter '{name}', rule {number}"
        for values in _instances(entry, variables, where):
            walk.step(where)
            coherent(values, where)
            walk.rules.append(Placed(entry, filter.chain, filter.priority, values))


def _instances(rule: Rule, variables: Variables, where: str) -> Iterator[Mapping[str, Value]]:
    """The rule's attributes once for each combination of its variables' values: those of one iterator go side
    by side, those of different ones all with all.
    """
    match = [(name, text) for name, text in rule.match if says(name, text)]
    named = {name: found for name, text in match if (found := variable(text)) is not None}
    missing = sorted(
        {name for name, index, _ in named.values() if len(variables.get(name, ())) <= (index or 0)}
    )
    if missing:
        raise NicagentError(
            Kind.INVALID,
            f"{where}: no value for {', '.join(missing)}",
            f"give one: <filterref …><parameter name='{missing[0]}' value=…/>",
        )
    lengths: dict[int, int] = {}
    for name, index, iterator in named.values():
        if index is None:
            length = len(variables[name])
            if lengths.setdefault(iterator, length) != length:
                raise NicagentError(
                    Kind.INVALID,
                    f"{where}: variables of iterator {iterator} have lists of different lengths",
                    f"give each its own iterator, as ${name}[@1]",
                )
    plain = {name: read(rule, name, text, where) for name, text in match if name not in named}
    for places in itertools.product(*(range(length) for length in lengths.values())):
        at = dict(zip(lengths, places, strict=True))
        yield plain | {
            attribute: read(rule, attribute, variables[name][at[iterator] if index is None else index], where)
            for attribute, (name, index, iterator) in named.items()
        }


def parameters(values: Mapping[str, list[str]]) -> Names:
    """A document's parameters, as a port keeps them."""
    return tuple((name, tuple(values[name])) for name in sorted(values))
