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
from pathlib import Path

import pytest

from hypervisor_shim.memory import MemoryDriver
from images.clients import UPSTREAM, upstream_source
from images.steps import Failure
from tests.clients.afresh import serving_afresh
from tests.differential.pair import LIKE_TEST
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

#: Not among them: virsh-auth and virsh-uriprecedence, which are about the client alone.
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


@pytest.mark.parametrize("script", SCRIPTS)
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
