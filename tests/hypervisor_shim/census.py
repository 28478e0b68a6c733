"""Which procedure each of libvirt's C functions calls, measured: the installed libvirt calls a server that
writes it down.

The functions and the types of their arguments are those of the description that libvirt installs for makers
of bindings (pkg-config's `libvirt_api`); the few that only libvirt's own migration calls are listed here.

    python -m tests.hypervisor_shim.census          prints `program number function`, a line each
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from ctypes import c_char_p, c_double, c_int, c_long, c_longlong, c_uint, c_ulong, c_ulonglong, c_void_p
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .recorder import UUID, Recorder, recording

_LIBRARIES = {"": "libvirt.so.0", "qemu_": "libvirt-qemu.so.0", "lxc_": "libvirt-lxc.so.0"}
_NUMBERS: dict[str, Any] = {
    "int": c_int, "unsigned int": c_uint, "long": c_long, "unsigned long": c_ulong, "double": c_double,
    "long long": c_longlong, "unsigned long long": c_ulonglong, "size_t": ctypes.c_size_t,
}  # fmt: skip
_LOOKUPS = {  # type → the function that gives one, of the connection or of another object; by name
    "virDomainPtr": ("virDomainLookupByName", "virConnectPtr"),
    "virNetworkPtr": ("virNetworkLookupByName", "virConnectPtr"),
    "virStoragePoolPtr": ("virStoragePoolLookupByName", "virConnectPtr"),
    "virStorageVolPtr": ("virStorageVolLookupByPath", "virConnectPtr"),
    "virNodeDevicePtr": ("virNodeDeviceLookupByName", "virConnectPtr"),
    "virNWFilterPtr": ("virNWFilterLookupByName", "virConnectPtr"),
    "virNWFilterBindingPtr": ("virNWFilterBindingLookupByPortDev", "virConnectPtr"),
    "virSecretPtr": ("virSecretLookupByUUIDString", "virConnectPtr"),
    "virInterfacePtr": ("virInterfaceLookupByName", "virConnectPtr"),
    "virNetworkPortPtr": ("virNetworkPortLookupByUUIDString", "virNetworkPtr"),
    "virDomainSnapshotPtr": ("virDomainSnapshotLookupByName", "virDomainPtr"),
    "virDomainCheckpointPtr": ("virDomainCheckpointLookupByName", "virDomainPtr"),
}
_UUID_TEXT = b"01020304-0506-0708-090a-0b0c0d0e0f10"
_BUFFER = 65_536  # bytes for whatever a function wants to write

#: Exported for libvirt's own daemon: the steps of a migration. (function, types of its arguments)
_C, _D, _S, _I, _L, _Z = (
    "virConnectPtr",
    "virDomainPtr",
    "const char *",
    "unsigned int",
    "unsigned long",
    "void *",
)
_STEPS = {
    "virDomainMigratePrepare": (_C, _Z, _Z, _S, _Z, _L, _S, _L),
    "virDomainMigratePerform": (_D, _Z, "int", _S, _L, _S, _L),
    "virDomainMigrateFinish": (_C, _S, _Z, "int", _S, _L),
    "virDomainMigratePrepare2": (_C, _Z, _Z, _S, _Z, _L, _S, _L, _S),
    "virDomainMigrateFinish2": (_C, _S, _Z, "int", _S, _L, "int"),
    "virDomainMigratePrepareTunnel": (_C, "virStreamPtr", _L, _S, _L, _S),
    "virDomainMigrateBegin3": (_D, _S, _Z, _Z, _L, _S, _L),
    "virDomainMigratePrepare3": (_C, _Z, "int", _Z, _Z, _S, _Z, _L, _S, _L, _S),
    "virDomainMigratePrepareTunnel3": (_C, "virStreamPtr", _Z, "int", _Z, _Z, _L, _S, _L, _S),
    "virDomainMigratePerform3": (_D, _S, _Z, "int", _Z, _Z, _S, _S, _L, _S, _L),
    "virDomainMigrateFinish3": (_C, _S, _Z, "int", _Z, _Z, _S, _S, _L, "int"),
    "virDomainMigrateConfirm3": (_D, _Z, "int", _L, "int"),
    "virDomainMigrateBegin3Params": (_D, _Z, "int", _Z, _Z, _I),
    "virDomainMigratePrepare3Params": (_C, _Z, "int", _Z, "int", _Z, _Z, _Z, _I),
    "virDomainMigratePrepareTunnel3Params": (_C, "virStreamPtr", _Z, "int", _Z, "int", _Z, _Z, _I),
    "virDomainMigratePerform3Params": (_D, _S, _Z, "int", _Z, "int", _Z, _Z, _I),
    "virDomainMigrateFinish3Params": (_C, _Z, "int", _Z, "int", _Z, _Z, _I, "int"),
    "virDomainMigrateConfirm3Params": (_D, _Z, "int", _Z, "int", _I, "int"),
}  # fmt: skip
#: What undoes something is called after what does it, and gets the number that it returned.
_UNDO = {"virConnectDomainEventDeregister": "virConnectDomainEventRegister"}

Arguments = list[tuple[str, str]]  # the name and the C type of each


class Caller:
    """Objects of one connection, and how to call a function with something for each argument."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._libraries = [ctypes.CDLL(name) for name in _LIBRARIES.values()]
        self._kept: list[Any] = []
        quiet = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)(lambda *_: None)
        self._nothing = ctypes.CFUNCTYPE(c_int)(lambda: 0)
        self._kept.append(quiet)
        self._returned = 0
        self._socket = socket.socket(socket.AF_UNIX)  # where a function wants a descriptor
        self._function("virSetErrorFunc")(None, quiet)
        self._function("virEventRegisterDefaultImpl")()
        open_ = self._pointer("virConnectOpen")
        uri = f"nic+unix:///system?socket={recorder.path}".encode()
        self._objects = {"virConnectPtr": open_(c_char_p(uri))}
        assert self._objects["virConnectPtr"], "libvirt could not open a connection to the recorder"
        self.opening = list(recorder.asked)
        for kind, (lookup, owner) in _LOOKUPS.items():
            name = _UUID_TEXT if "UUID" in lookup else b"x"
            self._objects[kind] = self._pointer(lookup)(
                c_void_p(self._objects[owner]), c_char_p(name), c_int(0)
            )
            assert self._objects[kind], f"{lookup} gave nothing"

    def _function(self, name: str) -> Any:
        for library in self._libraries:
            if hasattr(library, name):
                return getattr(library, name)
        raise LookupError(name)

    def _pointer(self, name: str) -> Any:
        function = self._function(name)
        function.restype = c_void_p
        return function

    def calls_of(self, name: str, functions: dict[str, Arguments]) -> Iterator[tuple[int, int, str]]:
        """(program, procedure, function) of each call that arrives when `name` is called."""
        before = _UNDO.get(name) or name.replace("DeregisterAny", "RegisterAny").replace("Unreg", "Reg")
        for function in dict.fromkeys((before, name)):
            self._recorder.asked.clear()
            self._call(function, functions[function])
            for program, procedure in self._recorder.asked:
                yield program, procedure, function

    def _call(self, name: str, arguments: Arguments) -> None:
        function = self._function(name)
        function.restype = c_void_p
        self._returned = function(*[self._value(label, kind.strip()) for label, kind in arguments])

    def _value(self, label: str, kind: str) -> Any:
        if kind in self._objects:
            return c_void_p(self._objects[kind])
        if kind == "virStreamPtr":
            return c_void_p(self._pointer("virStreamNew")(c_void_p(self._objects["virConnectPtr"]), c_int(0)))
        if kind in _NUMBERS:
            given = {
                "flags": 0,
                "eventID": 0,
                "callbackID": self._returned or 0,
                "type": 2,
                "fd": self._socket.fileno(),
            }
            return _NUMBERS[kind](given.get(label, 1))
        if kind == "const char *":
            return c_char_p(_UUID_TEXT if "uuid" in label else b"/x")
        if kind == "const unsigned char *" and "uuid" not in label:
            return c_char_p(b"/x")
        if kind.endswith(("Callback", "Func")):
            return c_void_p(ctypes.cast(self._nothing, c_void_p).value)
        return self._buffer(kind)

    def _buffer(self, kind: str) -> Any:
        """Room to write into, holding one of whatever is read from it."""
        buffer = ctypes.create_string_buffer(_BUFFER)
        self._kept.append(buffer)
        if kind == "const unsigned char *":
            ctypes.memmove(buffer, UUID, 16)
        elif kind == "int *":
            buffer[0] = b"\1"
        elif kind == "virTypedParameterPtr":  # a name of 80 bytes, the type int, a value
            buffer[0], buffer[80] = b"x", b"\1"
        elif kind.startswith(("const char **", "virDomainPtr *")):
            word = ctypes.create_string_buffer(b"x")
            self._kept.append(word)
            first = self._objects["virDomainPtr"] if kind.startswith("vir") else ctypes.addressof(word)
            ctypes.memmove(buffer, first.to_bytes(8, "little"), 8)
        return c_void_p(ctypes.addressof(buffer))


def described() -> dict[str, Arguments]:
    """Every public function, and the steps."""
    found: dict[str, Arguments] = {}
    for prefix in _LIBRARIES:
        argv = ["pkg-config", f"--variable=libvirt_{prefix}api", "libvirt"]
        path = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
        for function in ElementTree.parse(path).iter("function"):
            found[function.attrib["name"]] = [
                (arg.attrib["name"], arg.attrib["type"]) for arg in function.iterfind("arg")
            ]
    found.update({name: [(kind, kind) for kind in kinds] for name, kinds in _STEPS.items()})
    return found


def _measurable(name: str) -> bool:
    """Not what would end the connection, nor what never leaves the client."""
    return (
        name.startswith(("virConnect", "virDomain", "virNetwork", "virStorage", "virNode", "virNWFilter",
                         "virSecret", "virInterface"))
        and not name.endswith(("Free", "Ref"))
        and not name.startswith(("virConnectClose", "virConnectOpen"))
    )  # fmt: skip


def main() -> None:
    functions = described()
    with tempfile.TemporaryDirectory() as directory:
        for features in (1, 0):
            with recording(Path(directory) / f"sock{features}", features) as recorder:
                caller = Caller(recorder)
                for program, procedure in caller.opening:
                    print(program, procedure, "virConnectOpen")
                for name in filter(_measurable, functions):
                    print(f"calling {name}", file=sys.stderr)
                    for call in caller.calls_of(name, functions):
                        print(*call)
    sys.stdout.flush()
    os._exit(0)  # libvirt's objects were made and dropped without ceremony: its own exit would trip over them


if __name__ == "__main__":
    main()
