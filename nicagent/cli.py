"""The `nicagent` command: the only reader of argv and environment.

Exit codes: 0 done, 1 failed, 2 wrong usage or wrong config, 3 no agent or device answers, 4 not in this
state.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nicagent.errors import Kind, NicagentError

DEFAULT_CONFIG = "/etc/nicagent/nicagent.toml"
DEFAULT_SOCKET = "/run/nicagent/nicagent.sock"

EXIT_CODES: Mapping[Kind, int] = {
    Kind.INVALID: 2,
    Kind.UNAVAILABLE: 3,
    Kind.WRONG_STATE: 4,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. No traceback for a user's mistake."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    _log_to_stderr(arguments)
    try:
        code = int(arguments.run(arguments) or 0)
        sys.stdout.flush()  # here, where a reader that has gone is no error
        return code
    except NicagentError as e:
        if getattr(arguments, "json", False):
            print(json.dumps({"error": e.kind.value, "message": e.message, "hint": e.hint}))
        else:
            print(f"nicagent: {e.message}", file=sys.stderr)
            if e.hint:
                print(f"  → {e.hint}", file=sys.stderr)
        return EXIT_CODES.get(e.kind, 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough; a second write at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="machine-readable output")
    common.add_argument("--socket", metavar="PATH", default=os.environ.get("NICAGENT_SOCKET", ""),
                        help=f"the agent's control socket (default {DEFAULT_SOCKET})")  # fmt: skip
    common.add_argument("-c", "--config", metavar="FILE", default=os.environ.get("NICAGENT_CONFIG", ""),
                        help=f"its config file (default {DEFAULT_CONFIG})")  # fmt: skip
    common.add_argument("-v", "--verbose", action="count", default=0, help="log more; twice: even more")

    parser = argparse.ArgumentParser(
        prog="nicagent", description="Drive a physical server like a VM: power, disks, network, console."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print it and end")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, parents=[common])
        sub.set_defaults(run=run)
        return sub

    command("serve", _serve, "run the agent")
    sub = command("emulate", _emulate, "run emulated servers from LAB.toml, and COMMAND among them")
    sub.add_argument("lab", metavar="LAB.toml")
    sub.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND …")
    sub = command("chassis", _chassis, "look at an emulated server of a lab, or break it")
    sub.add_argument("action", choices=["status", "history", "waveform", "disks", "fault", "clear", "mains"])
    sub.add_argument("host")
    sub.add_argument("what", nargs="?", help="fault to inject or clear; mains: on or off")
    sub.add_argument("value", nargs="?", type=float, help="seconds, or milliseconds, that the fault takes")
    sub.add_argument(
        "--lab", metavar="DIR", default=os.environ.get("NICAGENT_LAB", ""), help="the lab's run_dir"
    )
    command("hosts", _hosts, "list the hosts, their power and their domains")
    sub = command("power", _power, "work a host's power, or show it")
    sub.add_argument("action", choices=["on", "off", "cycle", "reset", "shutdown", "press", "status"])
    sub.add_argument("host")
    sub = command("console", _console, "join a host's console; leave with Ctrl-]")
    sub.add_argument("host")
    sub.add_argument("--force", action="store_true", help="end the sessions of others")
    sub = command("libvirt", _libvirt, "who may use the agent as libvirt clients: logins and certificates")
    sub.add_argument("action", choices=["passwd", "drop", "users", "certs", "client"],
                     help="passwd, drop: a login; users: list them; certs: the agent's own certificate; "
                          "client: one for a client")  # fmt: skip
    sub.add_argument("name", nargs="*", help="the user; the agent's names and addresses; the client's name")
    sub.add_argument("--to", metavar="DIR", help="client: where its files go (default ./NAME)")
    sub = command("doctor", _doctor, "check what is wired, what answers, what is missing and how to mend it")
    sub.add_argument("host", nargs="?", help="only this host")
    return parser


class _Version(argparse.Action):
    """Looked up when it is asked for only: that takes longer than the rest of a command."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib import metadata

        try:
            print(f"nicagent {metadata.version('nicagent')}")
        except metadata.PackageNotFoundError:
            print("nicagent of a checkout that is not installed")
        parser.exit()


def _log_to_stderr(arguments: argparse.Namespace) -> None:
    level = [logging.WARNING, logging.INFO, logging.DEBUG][min(arguments.verbose, 2)]
    if arguments.run is _serve:
        level = min(level, logging.INFO)
    # Under systemd the journal adds the time itself.
    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    logging.basicConfig(level=level, format=f"{stamp}%(levelname)s %(name)s: %(message)s", stream=sys.stderr)


def _socket(arguments: argparse.Namespace) -> Path:
    if arguments.socket:
        return Path(arguments.socket)
    if arguments.config:
        from nicagent import config

        return Path(config.load(Path(arguments.config)).agent.run_dir) / "nicagent.sock"
    return Path(DEFAULT_SOCKET)


def _serve(arguments: argparse.Namespace) -> int:
    from nicagent import config

    loaded = config.load(Path(arguments.config or DEFAULT_CONFIG))
    from hypervisor_shim.activation import handed_over
    from nicagent import agent  # all of it: only once the config is known to be right

    try:
        sockets = handed_over(os.environ, os.getpid())
    except ValueError as bad:
        raise NicagentError(
            Kind.INVALID, f"what systemd handed over: {bad}", "mend the .socket unit"
        ) from None
    try:
        asyncio.run(agent.serve(loaded, sockets))
    except BaseExceptionGroup as group:
        told = _first(group)
        if told is None:
            raise
        raise told from None
    return 0


def _first(group: BaseExceptionGroup[BaseException]) -> NicagentError | None:
    """What to tell of a group: its first error with a sentence, if all of them have one."""
    known, other = group.split(NicagentError)
    if known is None or other is not None:
        return None
    inner = known.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _emulate(arguments: argparse.Namespace) -> int:
    from nicagent.emulator import lab

    command = arguments.command
    if command[:1] == ["--"]:
        command = command[1:]
    return lab.run_lab(Path(arguments.lab), command or None)


def _chassis(arguments: argparse.Namespace) -> int:
    from nicagent.emulator.control import ChassisControl

    if not arguments.lab:
        raise NicagentError(
            Kind.INVALID,
            "which lab?",
            "run it inside one (nicagent emulate LAB.toml -- …), or name it with --lab DIR",
        )
    if arguments.action == "mains" and arguments.what not in ("on", "off"):
        raise NicagentError(Kind.INVALID, "mains: on or off?", f"nicagent chassis mains {arguments.host} off")
    chassis = ChassisControl.of(Path(arguments.lab), arguments.host)
    match arguments.action:
        case "fault":
            answer: Any = chassis.fault(arguments.what or "", arguments.value)
        case "clear":
            answer = chassis.clear(arguments.what)
        case "mains":
            answer = chassis.mains(arguments.what == "on")
        case _:
            answer = getattr(chassis, arguments.action)()
    print(json.dumps(answer, indent=None if arguments.json else 1))
    return 0


def _hosts(arguments: argparse.Namespace) -> int:
    from nicagent import client

    path = _socket(arguments)
    hosts = client.call(path, "GET", "/v1/hosts")
    if arguments.json:
        print(json.dumps(hosts))
        return 0
    domains = {status["domain"]["uuid"]: status for status in client.call(path, "GET", "/v1/domains")}
    rows = []
    for host in hosts:
        domain = domains.get(host["domain"])
        name = domain["domain"]["name"] if domain else "-"
        rows.append([host["name"], host["power"], host["state"], name, _age(host["since"]), _why(host)])
    _table(["host", "power", "state", "domain", "since", "why"], rows)
    return 0


def _power(arguments: argparse.Namespace) -> int:
    from urllib.parse import quote

    from nicagent import client

    route = f"/v1/hosts/{quote(arguments.host, safe='')}"
    if arguments.action == "status":
        status = client.call(_socket(arguments), "GET", route)
    else:
        with _waiting(f"power {arguments.action} {arguments.host}", quiet=arguments.json):
            status = client.call(_socket(arguments), "POST", f"{route}/power", {"action": arguments.action})
    if arguments.json:
        print(json.dumps(status))
    else:
        print(f"{status['name']}: power {status['power']}, {status['state']} ({_why(status) or 'at rest'})")
    return 0


def _why(host: Mapping[str, Any]) -> str:
    """Why a host is in its state, and why its power cannot be read."""
    reason, trouble = host["reason"], host.get("trouble") or ""
    return "; ".join(each for each in (reason, "" if trouble in reason else trouble) if each)


def _console(arguments: argparse.Namespace) -> int:
    from nicagent import client

    asyncio.run(client.console(_socket(arguments), arguments.host, force=arguments.force))
    return 0


def _libvirt(arguments: argparse.Namespace) -> int:
    from nicagent import config, libvirt_access

    libvirt = config.load(Path(arguments.config or DEFAULT_CONFIG)).libvirt
    wanted = {"passwd": 1, "drop": 1, "users": 0, "client": 1}.get(arguments.action, len(arguments.name) or 1)
    if len(arguments.name) != wanted:
        raise NicagentError(
            Kind.INVALID, f"{arguments.action} takes {wanted or 'no'} name", "see nicagent libvirt --help"
        )
    match arguments.action:
        case "passwd":
            libvirt_access.set_password(libvirt, arguments.name[0], _password)
        case "drop":
            libvirt_access.drop_user(libvirt, arguments.name[0])
        case "users":
            users = libvirt_access.users(libvirt)
            print(json.dumps(users) if arguments.json else "\n".join(users))
        case "certs":
            print(libvirt_access.make_certificates(libvirt, arguments.name))
        case _:
            to = Path(arguments.to or arguments.name[0])
            print(libvirt_access.make_client(libvirt, arguments.name[0], to))
    return 0


def _password(user: str) -> str:
    """From a terminal twice and unseen, otherwise the first line of standard input; never from argv."""
    import getpass

    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    password = getpass.getpass(f"password of {user}: ")
    if getpass.getpass("again: ") != password:
        raise NicagentError(Kind.INVALID, "the two are not the same", "try again")
    return password


def _doctor(arguments: argparse.Namespace) -> int:
    from nicagent import config, doctor

    loaded = config.load(Path(arguments.config or DEFAULT_CONFIG))
    socket = Path(arguments.socket or Path(loaded.agent.run_dir) / "nicagent.sock")
    with _waiting("checking", quiet=arguments.json):
        checks = doctor.examine(loaded, arguments.host, socket)
    if arguments.json:
        print(json.dumps([check.__dict__ for check in checks]))
    else:
        marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "broken": "[red]broken[/]"}
        rows = [[marks[each.verdict], each.subject, each.finding, each.mend] for each in checks]
        _table(["", "what", "found", "to mend it"], rows, styled=True)
    return 1 if any(check.verdict == "broken" for check in checks) else 0


def _table(head: list[str], rows: list[list[str]], *, styled: bool = False) -> None:
    """Colours and lines on a terminal; plain tab-separated text in a pipe."""
    import re

    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(re.sub(r"\[/?\w*\]", "", cell) if styled else cell for cell in row))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*head, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(cell if styled else escape(cell) for cell in row))
    Console().print(table)


class _waiting:
    """A spinner with the elapsed time, on a terminal, for what may take longer than two seconds."""

    def __init__(self, what: str, *, quiet: bool) -> None:
        self._status: Any = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status(f"{what} …")

    def __enter__(self) -> None:
        if self._status is not None:
            self._status.start()

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()


def _age(since: float) -> str:
    seconds = int(time.time() - since)
    if not since or seconds < 0:
        return "-"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


if __name__ == "__main__":
    sys.exit(main())
