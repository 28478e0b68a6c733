"""A private apt: Debian packages fetched by an ordinary user, of the release we want, whatever runs here."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from images.steps import CACHE, Failure, plain_environment, run

RELEASE = "bookworm"
MIRROR_VARIABLE = "NICAGENT_MIRROR"  # the set-up's one environment variable: a nearer Debian mirror


def mirror() -> str:
    return os.environ.get(MIRROR_VARIABLE, "http://deb.debian.org/debian")


def sources(release: str = RELEASE, kind: str = "deb") -> list[str]:
    """Lines of a sources.list: the release, its updates, its security fixes. `kind`: deb or deb-src."""
    lines = [f"{kind} {mirror()} {suite} main" for suite in (release, f"{release}-updates")]
    security = mirror().replace("/debian", "/debian-security")
    return [*lines, f"{kind} {security} {release}-security main"]


@dataclass(frozen=True)
class Apt:
    """An apt of its own under `.cache/apt`; another release, or its sources, have a `base` of their own."""

    base: Path = CACHE / "apt"
    release: str = RELEASE
    kind: str = "deb"

    def _options(self) -> list[str]:
        places = {
            "Dir::State": self.base / "state",
            "Dir::State::status": self.base / "status",
            "Dir::Cache": self.base / "cache",
            "Dir::Etc::sourcelist": self.base / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        return [word for key, value in places.items() for word in ("-o", f"{key}={value}")]

    def update(self) -> None:
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        (self.base / "status").touch()
        (self.base / "sources.list").write_text("\n".join(sources(self.release, self.kind)) + "\n")
        command = ["apt-get", *self._options(), "-o", "APT::Update::Error-Mode=any", "update"]
        run(command, log="apt-private-update", doing="read Debian's package lists", needs=mirror())

    def depends(self, package: str) -> str:
        """The Depends field of the newest version."""
        command = ["apt-cache", *self._options(), "show", "--no-all-versions", package]
        answer = subprocess.run(command, capture_output=True, text=True, env=plain_environment(), check=False)
        match = re.search(r"^Depends: (.*)$", answer.stdout, re.M)
        if match is None:
            raise Failure(f"Debian {self.release} has no package {package}; is {mirror()} a full mirror?")
        return match[1]

    def download(self, package: str, into: Path) -> Path:
        """Fetch the newest version of one package's .deb."""
        into.mkdir(parents=True, exist_ok=True)
        for stale in into.glob(f"{package}_*.deb"):
            stale.unlink()
        command = ["apt-get", *self._options(), "download", package]
        run(command, log="apt-download", doing=f"fetch {package}", needs=mirror(), cwd=into)
        return next(into.glob(f"{package}_*.deb"))

    def source(self, package: str, into: Path) -> Path:
        """Fetch the upstream archive of the newest version of a source package."""
        into.mkdir(parents=True, exist_ok=True)
        # The archive alone: its hash is in the signed list, and not every mirror has what else is listed.
        command = ["apt-get", *self._options(), "source", "--download-only", "--tar-only", package]
        run(command, log="apt-source", doing=f"fetch the source of {package}", needs=mirror(), cwd=into)
        return next(into.glob(f"{package}_*.orig.tar.*[!c]"))
