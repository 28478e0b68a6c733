"""libvirt's own tests of virsh, and libvirt-python's own tests, against a server that looks like `test:///default`.

They are taken from Debian's source package and from PyPI's when the tests run, into `.cache`, and are no part
of this repository. What fails is listed with its reason; one that fails or passes unexpectedly fails here.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from hypervisor_shim.driver import NodeInfo
from hypervisor_shim.memory import MemoryDriver
from images.clients import UPSTREAM, upstream_source
from images.steps import Failure
from tests.clients.afresh import serving_afresh
from tests.clients.virshtest import runs
from tests.differential.pair import LIKE_TEST
from tests.differential.versions import PEER, Peer
from tests.hypervisor_shim.serving import Served

#: What stands in libvirt's build tree where virsh is: the installed one, with the URI of our server.
_VIRSH = """\
#!/bin/sh
n=$#
while [ $n -gt 0 ]; do
    case $1 in test:///default | test://*/testnode.xml) set -- "$@" '{uri}' ;; *) set -- "$@" "$1" ;; esac
    shift; n=$((n - 1))
done
[ "$LIBVIRT_DEFAULT_URI" != test:///default ] || LIBVIRT_DEFAULT_URI='{uri}'
exec virsh "$@"
"""

#: Up to libvirt 9. Not among them: virsh-auth and virsh-uriprecedence, which are about the client alone.
SCRIPTS = (
    "virsh-checkpoint",
    "virsh-cpuset",
    "virsh-define-dev-segfault",
    "virsh-int-overflow",
    "virsh-optparse",
    "virsh-output",
    "virsh-read-bufsiz",
    "virsh-read-non-seekable",
    "virsh-schedinfo",
    "virsh-self-test",
    "virsh-snapshot",
    "virsh-start",
    "virsh-undefine",
    "virsh-vcpupin",
)
FAILING_SCRIPTS = {
    "virsh-checkpoint": "checkpoints are refused: the block engine keeps no dirty bitmaps for clients",
    "virsh-snapshot": "likewise: among its snapshots it asks for a checkpoint",
}

#: From libvirt 10 on: runs of virsh with the words that libvirt expects. Two libvirt nodes are there.
_CHECKPOINTS = "checkpoints are refused"
_MADE_UP = "the test driver claims a security model and taints; here neither is claimed"
FAILING_RUNS = {
    "checkpoint": _CHECKPOINTS,
    "checkpoint-redefine": _CHECKPOINTS,
    "snapshot": "among its snapshots it asks for a checkpoint",
    "snapshot-redefine": "a snapshot is taken, and cannot be made from its document alone",
    "domain-id": _MADE_UP,
    "lifecycle": _MADE_UP,
    "blkiotune": "a document's <blkiotune> is kept and shown, but no cgroup is there to be told of",
    "iothreads": "there is no emulator here that could have I/O threads",
    "script-friendly-options": "domstats tells of more than the state, and a domain's start has a reason",
}

_NEVER_IDLE = "wants a driver within the client: a connection over a socket is never idle"
FAILING_PYTHON = {
    "testEventsPreInitExplicit": _NEVER_IDLE,
    "testEventsWithAsyncioRun": _NEVER_IDLE,
    "testEventsWithManualLoopSetup": _NEVER_IDLE,
    "testCheckpointCreate": "checkpoints are refused",
}


@pytest.fixture(scope="module")
def like_test() -> Iterator[Served]:
    def make() -> MemoryDriver:
        return MemoryDriver(identity=LIKE_TEST, uri="test:///default")

    with tempfile.TemporaryDirectory(prefix="own-") as name, serving_afresh(make, Path(name)) as served:
        yield served


@pytest.fixture(scope="module")
def sources() -> dict[str, Path | Failure]:
    """Looked for once: without a network that takes seconds."""

    def look(package: str) -> Path | Failure:
        try:
            return upstream_source(package)
        except Failure as failure:
            return failure

    return {package: look(package) for package in UPSTREAM}


def _there(found: Path | Failure) -> Path:
    if isinstance(found, Failure):
        pytest.skip(str(found))
    return found


def _uri(served: Served) -> str:
    return f"test+unix:///default?socket={served.path}"


@pytest.mark.parametrize("script", SCRIPTS if PEER is Peer.DEBIAN_12 else ())
def test_libvirts_virsh_script(
    script: str, like_test: Served, sources: dict[str, Path | Failure], tmp_path: Path
) -> None:
    source = _there(sources["libvirt"])
    tools = tmp_path / "build" / "tools"
    tools.mkdir(parents=True)
    virsh = tools / "virsh"
    virsh.write_text(_VIRSH.format(uri=_uri(like_test)))
    virsh.chmod(virsh.stat().st_mode | stat.S_IXUSR)
    home = tmp_path / "run"
    home.mkdir()
    done = subprocess.run(
        [source / "tests" / script],
        cwd=home,
        env={
            "PATH": os.environ["PATH"],
            "LC_ALL": "C",
            "HOME": str(home),
            "TMPDIR": str(home),
            "XDG_RUNTIME_DIR": str(home),
            "XDG_CACHE_HOME": str(home),
            "XDG_CONFIG_HOME": str(home),
            "VIR_TEST_EXPENSIVE": "1",
            "VIR_TEST_DEBUG": "1",
            "abs_top_builddir": str(tools.parent),
            "abs_builddir": str(home),
            "abs_top_srcdir": str(source),
            "abs_srcdir": str(source / "tests"),
        },
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    words = f"{script} ended with {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    reason = FAILING_SCRIPTS.get(script)
    if reason is None:
        assert done.returncode == 0, words
    else:
        assert done.returncode != 0, (
            f"{script} is said to fail ({reason}), but it passes: take it off the list"
        )


@pytest.mark.skipif(PEER is Peer.DEBIAN_12, reason="libvirt 9 has scripts instead")
@pytest.mark.parametrize("custom", [False, True], ids=["test:///default", "testnode.xml"])
def test_libvirts_virsh_runs(custom: bool, sources: dict[str, Path | Failure], tmp_path: Path) -> None:
    source = _there(sources["libvirt"])
    examples = source / "examples" / "xml" / "test"
    documents = [(examples / f"testdom{name}.xml").read_text() for name in ("fv0", "fc4", "fc5")]
    node = NodeInfo("i986", 8_192_000, cpus=50, mhz=6000, nodes=4, sockets=4, cores=4, threads=2)

    def make() -> MemoryDriver:
        make = partial(MemoryDriver, identity=LIKE_TEST, uri="test:///default")
        return make(documents, node=node) if custom else make()

    chosen = [run for run in runs(source) if run.custom is custom]
    assert len(chosen) > 20, "libvirt's table is not read as it is written"
    different = {}
    with tempfile.TemporaryDirectory(prefix="own-") as name, serving_afresh(make, Path(name)) as served:
        for run in chosen:
            done = subprocess.run(
                ["virsh", "--connect", _uri(served), *run.argv],
                cwd=tmp_path,
                env={"PATH": os.environ["PATH"], "LANG": "C", "HOME": str(tmp_path)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=60,
            )
            if run.differs(done.stdout, done.returncode):
                different[run.name] = f"{done.stdout[-1500:]}(exit {done.returncode})"
    unexpected = {name: words for name, words in different.items() if name not in FAILING_RUNS}
    assert not unexpected, f"not what libvirt expects: {unexpected}"
    listed = FAILING_RUNS.keys() & {run.name for run in chosen}
    assert not (same := listed - different.keys()), f"said to fail, but they pass: {same}"


#: Run before libvirt-python's tests: `test:///default` is our server.
_PLUGIN = """\
import os, libvirt
_open = libvirt.open
libvirt.open = lambda name=None: _open(os.environ["NIC_URI"] if name == "test:///default" else name)
"""


def test_libvirt_pythons_own_tests(
    like_test: Served, sources: dict[str, Path | Failure], tmp_path: Path
) -> None:
    source = _there(sources["libvirt-python"])
    (tmp_path / "as_default.py").write_text(_PLUGIN)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "--tb=line", "-p", "no:cacheprovider",
         "-p", "as_default", "-c", os.devnull, "--rootdir", tmp_path,
         "--ignore", source / "tests/test_api_coverage.py", source / "tests"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{source / 'tests'}", "NIC_URI": _uri(like_test)},
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    passed, failed = set(), {}
    for line in done.stdout.splitlines():
        word, _, rest = line.partition(" ")
        name, _, why = rest.rpartition("::")[2].partition(" - ")
        if word == "PASSED":
            passed.add(name)
        elif word in ("FAILED", "ERROR"):
            failed[name] = why
    assert passed, done.stdout[-3000:] + done.stderr[-3000:]
    unexpected = {name: why for name, why in failed.items() if name not in FAILING_PYTHON}
    assert not unexpected, f"libvirt-python's tests fail: {unexpected}"
    assert not (listed := FAILING_PYTHON.keys() - failed.keys()), f"said to fail, but they pass: {listed}"
