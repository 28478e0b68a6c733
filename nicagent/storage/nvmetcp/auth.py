"""Authentication of one queue: DH-HMAC-CHAP as a table of what may come when.

The host speaks by AUTH_SEND and listens by AUTH_RECV. Whatever is out of order, of another transaction, of a
wrong length or a wrong answer is told to the host as AUTH_Failure1 at its next AUTH_RECV, and the connection
ends. A queue that is authenticated may be asked again by its host at any time; it serves on meanwhile.

Source: NVM Express base 2.0, section 8.13.5 (DH-HMAC-CHAP and its messages).
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from struct import Struct

from nicagent.storage.nvmetcp.dhchap import (
    Challenge,
    Exchange,
    Group,
    Hash,
    Key,
    augmented,
    controller_response,
    host_response,
)

COMMON, DHCHAP = 0x00, 0x01  # AUTH_TYPE
AUTH_ID = 0x01  # DH-HMAC-CHAP among authentication protocols
LISTED_MAX = 30  # hashes, and groups, of a protocol descriptor
DESCRIPTOR = 64  # bytes

HEADER = Struct("<BBHH")  # auth_type, auth_id, reserved, t_id
NEGOTIATE = Struct("<BBHHBB")  # …, sc_c, napd
CHALLENGE = Struct("<BBHHBBBBHI")  # …, hl, reserved, hash, group, dhvlen, seqnum
REPLY = Struct("<BBHHBBBBHI")  # …, hl, reserved, cvalid, reserved, dhvlen, seqnum
SUCCESS1 = Struct("<BBHHBBB7x")  # …, hl, reserved, rvalid
SUCCESS2 = Struct("<BBHH10x")
FAILURE = Struct("<BBHHBB")  # …, reason, explanation

REASON_FAILED = 0x01


class Message(Enum):
    """Messages by AUTH_TYPE and AUTH_ID."""

    NEGOTIATE = (COMMON, 0x00)
    FAILURE2 = (COMMON, 0xF0)
    FAILURE1 = (COMMON, 0xF1)
    CHALLENGE = (DHCHAP, 0x01)
    REPLY = (DHCHAP, 0x02)
    SUCCESS1 = (DHCHAP, 0x03)
    SUCCESS2 = (DHCHAP, 0x04)


class Why(IntEnum):
    """Reason code explanations of a failure."""

    FAILED = 0x01
    NOT_USABLE = 0x02  # no authentication protocol of ours is offered
    CONCATENATION = 0x03
    HASH = 0x04
    GROUP = 0x05
    PAYLOAD = 0x06
    MESSAGE = 0x07


class State(Enum):
    """Who speaks next, and what."""

    IDLE = auto()  # the host, if it wants to: AUTH_Negotiate
    CHALLENGE = auto()  # we
    REPLY = auto()  # the host
    SUCCESS1 = auto()  # we
    SUCCESS2 = auto()  # the host: it judges our proof
    FAILURE1 = auto()  # we, and then the connection ends
    OVER = auto()  # nobody: it ends


class Failure(Exception):
    """The exchange fails; the host is told why."""

    def __init__(self, why: Why) -> None:
        super().__init__(why.name)
        self.why = why


@dataclass(frozen=True)
class Requirement:
    """What a host has to prove, and what we can. Hashes and groups in the order we like them."""

    key: Key
    controller_key: Key | None = None
    hashes: tuple[Hash, ...] = (Hash.SHA256, Hash.SHA384, Hash.SHA512)
    groups: tuple[Group, ...] = (Group.FFDHE2048, Group.FFDHE3072, Group.FFDHE4096, Group.NULL)


class Authentication:
    """Of one queue. Nothing here waits; the queue bounds the time, and ends the connection when `over`."""

    def __init__(self, requirement: Callable[[], Requirement | None], hostnqn: str, subnqn: str) -> None:
        """`requirement` is asked at the beginning of each exchange; None when none is possible any more."""
        self.state = State.IDLE
        self.authenticated = False
        self._requirement = requirement
        self._hostnqn = hostnqn
        self._subnqn = subnqn
        self._run: _Run | None = None
        self._transaction = 0
        self.why = Why.FAILED  # of a failure

    @property
    def under_way(self) -> bool:
        """Whether an exchange has begun and not ended."""
        return self.state not in (State.IDLE, State.OVER)

    @property
    def over(self) -> bool:
        """Whether the connection is to end."""
        return self.state is State.OVER

    def send(self, message: bytes) -> None:
        """The host speaks (AUTH_SEND)."""
        try:
            kind = _kind(message)
            if kind is Message.FAILURE2 and self.under_way:
                self.state = State.OVER  # it has judged; there is nothing to add
                return
            step = _SEND.get((self.state, kind))
            if step is None:
                raise Failure(Why.MESSAGE)
            step(self, message)
        except Failure as failure:
            self._fail(failure.why)

    def receive(self, limit: int) -> bytes:
        """The host listens (AUTH_RECV), for up to `limit` bytes."""
        if self.state not in _RECEIVE:
            self._fail(Why.MESSAGE)
        elif self._run is not None and limit < self._run.size_of_ours(self.state):
            self._fail(Why.PAYLOAD)  # half a SUCCESS1 must not make a known host
        return _RECEIVE[self.state](self)[:limit]

    def _fail(self, why: Why) -> None:
        if self.state is not State.FAILURE1:  # the first reason stands
            self.why = why
        self._run = None
        self.state = State.FAILURE1

    # The host's messages -----------------------------------------------------------------------------------

    def _negotiate(self, message: bytes) -> None:
        if len(message) < NEGOTIATE.size:
            raise Failure(Why.PAYLOAD)
        _, _, _, self._transaction, concatenation, protocols = NEGOTIATE.unpack_from(message)
        if not protocols or len(message) != NEGOTIATE.size + protocols * DESCRIPTOR:
            raise Failure(Why.PAYLOAD)
        if concatenation:  # a secure channel behind the exchange: TLS, which is not ours
            raise Failure(Why.CONCATENATION)
        requirement = self._requirement()
        if requirement is None:
            raise Failure(Why.FAILED)
        for at in range(NEGOTIATE.size, len(message), DESCRIPTOR):
            if message[at] == AUTH_ID:
                hashes, groups = _offer(message[at : at + DESCRIPTOR])
                break
        else:
            raise Failure(Why.NOT_USABLE)
        hash_ = next((one for one in requirement.hashes if one in hashes), None)
        if hash_ is None:
            raise Failure(Why.HASH)
        group = next((one for one in requirement.groups if one in groups), None)
        if group is None:
            raise Failure(Why.GROUP)
        self._run = _Run(requirement, hash_, group, self._transaction)
        self.state = State.CHALLENGE

    def _reply(self, message: bytes) -> None:
        run = self._current(message)
        if len(message) < REPLY.size:
            raise Failure(Why.PAYLOAD)
        _, _, _, _, length, _, proof_wanted, _, public_length, sequence = REPLY.unpack_from(message)
        size, public_size = run.hash.size, run.group.size
        if (length, public_length) != (size, public_size) or len(message) != (
            REPLY.size + 2 * size + public_size
        ):
            raise Failure(Why.PAYLOAD)
        at = REPLY.size
        response, theirs, public = (
            message[at : at + size],
            message[at + size : at + 2 * size],
            message[at + 2 * size :],
        )
        shared = run.shared(public)
        expected = host_response(
            run.hash,
            run.requirement.key.of(self._hostnqn),
            run.challenge(run.value, run.sequence, shared),
            self._hostnqn,
            self._subnqn,
        )
        if not hmac.compare_digest(expected, response):
            raise Failure(Why.FAILED)
        if proof_wanted & 1:
            key = run.requirement.controller_key
            if key is None:
                raise Failure(Why.FAILED)  # the host would not believe us, and is right
            run.proof = controller_response(
                run.hash,
                key.of(self._subnqn),
                run.challenge(theirs, sequence, shared),
                self._hostnqn,
                self._subnqn,
            )
        self.state = State.SUCCESS1

    def _convinced(self, message: bytes) -> None:
        self._current(message)
        if len(message) != SUCCESS2.size:
            raise Failure(Why.PAYLOAD)
        self._done()

    def _current(self, message: bytes) -> _Run:
        run = self._run
        if run is None or HEADER.unpack_from(message)[3] != run.transaction:
            raise Failure(Why.PAYLOAD)
        return run

    def _done(self) -> None:
        self._run = None
        self.authenticated = True
        self.state = State.IDLE

    # Ours --------------------------------------------------------------------------------------------------

    def _say_challenge(self) -> bytes:
        run = self._run
        assert run is not None
        run.exchange = Exchange(run.group) if run.group else None
        public = run.exchange.public if run.exchange else b""
        self.state = State.REPLY
        kind = Message.CHALLENGE.value
        head = CHALLENGE.pack(
            *kind, 0, run.transaction, run.hash.size, 0, run.hash, run.group, len(public), run.sequence
        )
        return head + run.value + public

    def _say_success1(self) -> bytes:
        run = self._run
        assert run is not None
        head = SUCCESS1.pack(*Message.SUCCESS1.value, 0, run.transaction, run.hash.size, 0, bool(run.proof))
        if run.proof:
            self.state = State.SUCCESS2
        else:
            self._done()
        return head + run.proof

    def _say_failure1(self) -> bytes:
        self.state = State.OVER
        return FAILURE.pack(*Message.FAILURE1.value, 0, self._transaction, REASON_FAILED, self.why)


class _Run:
    """One exchange: what was agreed on, and its secrets."""

    def __init__(self, requirement: Requirement, hash_: Hash, group: Group, transaction: int) -> None:
        self.requirement = requirement
        self.hash = hash_
        self.group = group
        self.transaction = transaction
        self.value = secrets.token_bytes(hash_.size)
        self.sequence = secrets.randbelow(0xFFFF_FFFF) + 1  # zero has a meaning of its own
        self.exchange: Exchange | None = None
        self.proof = b""  # R2, if the host asked for it

    def size_of_ours(self, state: State) -> int:
        """Of the message that we say in `state`, in bytes."""
        if state is State.CHALLENGE:
            return CHALLENGE.size + self.hash.size + self.group.size
        return SUCCESS1.size + len(self.proof)

    def shared(self, public: bytes) -> bytes:
        """What both sides know by the exchange of public values; empty in the null group."""
        if self.exchange is None:
            return b""
        try:
            return self.exchange.shared(public)
        except ValueError:
            raise Failure(Why.PAYLOAD) from None

    def challenge(self, value: bytes, sequence: int, shared: bytes) -> Challenge:
        """The challenge `value` as its answer takes it."""
        if shared:
            value = augmented(self.hash, shared, value)
        return Challenge(value, sequence, self.transaction)


def _kind(message: bytes) -> Message:
    if len(message) < HEADER.size:
        raise Failure(Why.PAYLOAD)
    try:
        return Message((message[0], message[1]))
    except ValueError:
        raise Failure(Why.MESSAGE) from None


def _offer(descriptor: bytes) -> tuple[bytes, bytes]:
    """The identifiers of hashes and of groups that a host's descriptor of DH-HMAC-CHAP lists."""
    hashes, groups = descriptor[2], descriptor[3]
    if not 0 < hashes <= LISTED_MAX or not 0 < groups <= LISTED_MAX:
        raise Failure(Why.PAYLOAD)
    return descriptor[4 : 4 + hashes], descriptor[4 + LISTED_MAX : 4 + LISTED_MAX + groups]


_SEND: dict[tuple[State, Message], Callable[[Authentication, bytes], None]] = {
    (State.IDLE, Message.NEGOTIATE): Authentication._negotiate,
    (State.REPLY, Message.REPLY): Authentication._reply,
    (State.SUCCESS2, Message.SUCCESS2): Authentication._convinced,
}

_RECEIVE: dict[State, Callable[[Authentication], bytes]] = {
    State.CHALLENGE: Authentication._say_challenge,
    State.SUCCESS1: Authentication._say_success1,
    State.FAILURE1: Authentication._say_failure1,
}
