"""What a newcomer's machine lacks: Debian packages from the one list, and the project's own `.venv`.

python3 -m images.setup            install and build what is missing; a second run does nothing
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from images.steps import ROOT, Failure, digest, make, plain_environment, run, step

PACKAGES = ROOT / "images" / "debian-packages.txt"
VENV = ROOT / ".venv"
TUN = Path("/dev/net/tun")
SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's: a version manager's shim would tie the .venv to one home


def codename() -> str:
    """The Debian release of this machine, such as "bookworm"; empty where it does not say."""
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        return ""


def wanted(listing: str, release: str | None = None) -> list[str]:
    """Package names of a list file: one a line, `#` begins a comment. `name [!bookworm]` is for every release
    but that one. `release`: this machine's, unless given."""
    here = codename() if release is None else release
    names = []
    for line in listing.splitlines():
        name, _, condition = line.split("#", 1)[0].strip().partition(" ")
        if name and condition.strip() != f"[!{here}]":
            names.append(name)
    return names


def missing(names: list[str]) -> list[str]:
    """Those of the packages that are not installed. Raises Failure where dpkg is not the package manager."""
    query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\\n", *names]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, env=plain_environment(), check=False)
    except FileNotFoundError:
        raise Failure("dpkg-query is missing: the set-up works on Debian 12 and 13 only") from None
    installed = {line.split()[0] for line in answer.stdout.splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in installed]


def install_packages(listing: Path = PACKAGES) -> None:
    """Install what is missing of a list file, with sudo when not root."""
    lacking = missing(wanted(listing.read_text()))
    if not lacking:
        return
    install = ["apt-get", "install", "-y", "--no-install-recommends", *lacking]
    prefix = _privilege(install)
    with step(f"installing {len(lacking)} Debian packages: {' '.join(lacking)}"):
        needs = "Debian's archive, for " + " ".join(lacking)
        run([*prefix, "apt-get", "update"], log="apt-update", doing="read the package lists", needs=needs)
        run([*prefix, *install], log="apt-install", doing="install the packages", needs=needs)


def _privilege(command: list[str]) -> list[str]:
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None or not _sudo_works():
        raise Failure(
            "packages are missing and this user may not install them; as root, run:\n  "
            f"apt-get update && {shlex.join(command)}"
        )
    return ["sudo", "-n", "DEBIAN_FRONTEND=noninteractive"]


def _sudo_works() -> bool:
    # Asking for the password happens here, on the terminal; the long commands then run without one.
    ask = ["sudo", "-v"] if sys.stdin.isatty() else ["sudo", "-n", "-v"]
    return (
        subprocess.run(ask, check=False, stderr=None if sys.stdin.isatty() else subprocess.DEVNULL).returncode
        == 0
    )


def open_tun() -> None:
    """Let ordinary users make tap devices in their own namespaces, as udev's default rules do.

    A container or a machine without udev has the device closed, and the demo then needs root.
    """
    if os.geteuid() == 0 and TUN.exists() and TUN.stat().st_mode & 0o666 != 0o666:
        with step(f"opening {TUN} to ordinary users, as udev does"):
            TUN.chmod(0o666)


def make_venv() -> None:
    """`.venv` with the project installed for development, made again when pyproject.toml changed."""
    version = subprocess.run(
        [SYSTEM_PYTHON, "-c", "import sys; print(sys.version)"], capture_output=True, text=True, check=True
    ).stdout
    # The path counts: a copied checkout must not run the original's code.
    recipe = digest([ROOT / "pyproject.toml", version, str(ROOT)])
    pip = VENV / "bin" / "pip"

    def build() -> None:
        run([SYSTEM_PYTHON, "-m", "venv", VENV], log="venv", doing="make the .venv")
        command: list[str | Path] = [pip, "install", "--disable-pip-version-check", "-e", ".[dev]"]
        needs = "PyPI, for the Python packages in pyproject.toml"
        run(command, log="pip", doing="install the Python packages", needs=needs)

    make("installing Python packages into .venv", [pip], VENV / ".stamp", recipe, build)


def main() -> int:
    try:
        install_packages()
        open_tun()
        make_venv()
    except Failure as failure:
        print(f"setup: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
