"""SCRAM as clients speak it, and as they do not: what comes before a login, instead of it, and after it."""

from __future__ import annotations

from base64 import b64encode

from scramp import ScramClient, ScramException

from hypervisor_shim.frame import Program, Status, Type, packet
from hypervisor_shim.sasl import MECHANISM, Scram, UserFile, Verifier
from tests.hypervisor_shim.serving import number, optional, text

from .rig import Client, Rig, Violation
from .source import Source

_INIT, _START, _STEP, _OPEN, _HOSTNAME = 67, 68, 69, 1, 59
_STEPS_MAX = 10
ATTEMPTS = 3
_USER, _PASSWORD = "alice", "open sesame"
_VERIFIER = Verifier.parse(
    "SCRAM-SHA-256$4096:IV/gc67lxUIxlOLfQTnZBVmora1QQ/BzbP2Gdkmc718="
    "$sQypXArootYOwJTEpglDS7JwwdCwYwf3e9fQpRb7mOc=:oG6PROxIoEx0CH5AAZ8xEY0HVEEfPJuzK7qxgvmf//U="
)
_FIRSTS = (
    "n,,n=alice,r=abc", "y,,n=alice,r=abc", "p=tls-unique,,n=alice,r=abc", "n,a=bob,n=alice,r=abc",
    "n,,n=,r=", "n,,n=alice", "n,,r=abc", "n,,n=al=2Cice,r=abc", "n,,n=al=ice,r=abc", "n,,m=x,n=alice,r=abc",
    "n,,n=nobody,r=abc", "", ",", "n", "n,", "n,,", "n,,n=alice,r=abc,x=" + "y" * 300, "n,,n=\udcff,r=a",
)  # fmt: skip
_FINALS = (
    "c=biws,r={},p={}", "c=,r={},p={}", "c=biws,r={}", "r={},p={}", "c=biws,p={1},r={0}", "c=!,r={},p={}",
    "c=biws,r={},p=", "c=biws,r={},x=1,p={}", "e=other-error", "", "c=eSws,r={},p={}",
)  # fmt: skip


class _OneUser(UserFile):
    """A file that is memory, with a verifier that takes little time."""

    def __init__(self) -> None:
        self._decoys = Verifier(bytes(16), bytes(32), bytes(32), 4096)

    def verifier(self, name: str) -> Verifier:
        return _VERIFIER if name == _USER else self._decoys


async def logins(rig: Rig, source: Source) -> None:
    """A few attempts on one connection, other calls between them. Nobody gets in but by the password."""
    client = rig.client(authenticator=Scram(_OneUser(), attempts=ATTEMPTS, penalty=0.0))
    proved = False
    for _ in range(_STEPS_MAX):
        if not source or not client.connected:
            break
        kind = source.below(8)
        if kind < 5:
            proved = await _attempt(rig, client, source) or proved
        elif kind == 5:
            await client.call(source.pick((_INIT, 66, 70, _HOSTNAME, 12, 2, 60)), source.blob())
        elif kind == 6:  # several at once, as no client that waits for answers sends them
            steps = [(_START, _start(rig, source, _data(source)))]
            steps += [(_STEP, _step(rig, source, _data(source))) for _ in range(4)]
            await client.feed(
                b"".join(
                    packet(Program.REMOTE, 1, step, Type.CALL, 7, Status.OK, body) for step, body in steps
                )
            )
            await client.settle()
        else:
            await client.call(_STEP, _step(rig, source, _data(source)))
        if client.session.authenticated and not proved:
            raise Violation("somebody got in without the password")
        if client.session.attempts > ATTEMPTS:
            raise Violation(f"{client.session.attempts} attempts, where {ATTEMPTS} are allowed")
    await client.call(_OPEN, optional(text("nic:///system")) + number(0))
    await client.call(_HOSTNAME, b"")


async def _attempt(rig: Rig, client: Client, source: Source) -> bool:
    """An exchange that is right up to where it goes wrong; whether it never did."""
    scram = ScramClient([MECHANISM], _USER, _PASSWORD if source.one_in(2) else "close sesame")
    first = scram.get_client_first() if source.one_in(2) else source.pick(_FIRSTS)
    serial = await client.call(_START, _start(rig, source, first.encode("utf-8", "surrogateescape")))
    if serial not in client.answers:
        return False
    told = client.answers[serial][2].decode()
    nonce = told.partition("r=")[2].partition(",")[0]
    try:
        scram.set_server_first(told)
        honest = scram.get_client_final()
    except ScramException:
        honest = ""
    final = source.pick(_FINALS).format(nonce, b64encode(source.take(32)).decode())
    if honest and source.below(3):
        final = honest
    await client.call(_STEP, _step(rig, source, final.encode()))
    return final == honest and client.session.authenticated


def _start(rig: Rig, source: Source, data: bytes) -> bytes:
    mechanism = MECHANISM if source.below(8) else source.pick(("", "PLAIN", "SCRAM-SHA-256-PLUS", "x" * 99))
    return _written(rig, _START, mechanism, source.below(2), data)


def _step(rig: Rig, source: Source, data: bytes) -> bytes:
    return _written(rig, _STEP, source.below(2), data)


def _written(rig: Rig, procedure: int, *values: object) -> bytes:
    args, out = rig.rows[Program.REMOTE, procedure].args, list[bytes]()
    assert args is not None
    args.write(values, out)
    return b"".join(out)


def _data(source: Source) -> bytes:
    return source.pick(_FIRSTS).encode("utf-8", "surrogateescape") if source.one_in(2) else source.blob()
