"""The set-up: one list of packages, sentences instead of tracebacks, and nothing done twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from images import clients, setup, steps


@pytest.mark.parametrize("listing", [setup.PACKAGES, clients.PACKAGES], ids=lambda path: path.name)
def test_the_list_has_a_reason_for_every_package_and_none_twice(listing: Path) -> None:
    lines = [line for line in listing.read_text().splitlines() if line and not line.startswith("#")]
    for line in lines:
        name, _, reason = line.partition("#")
        assert name.strip() and reason.strip(), f"no reason is given for {line!r}"
    names = setup.wanted(listing.read_text())
    assert len(names) == len(set(names))


def test_a_package_may_be_of_newer_releases_only() -> None:
    listing = "one  # of all\nnew [!bookworm]  # in Debian 12 it is part of another\n"
    assert setup.wanted(listing, "bookworm") == ["one"]
    assert setup.wanted(listing, "trixie") == setup.wanted(listing, "") == ["one", "new"]


def test_missing_packages_are_found() -> None:
    assert setup.missing(["dpkg", "nicagent-no-such-package"]) == ["nicagent-no-such-package"]


def test_without_root_and_sudo_the_exact_command_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "missing", lambda names: ["fio", "tgt"])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("images.setup.shutil.which", lambda name: None)
    with pytest.raises(steps.Failure) as failure:
        setup.install_packages()
    assert "apt-get update && apt-get install -y --no-install-recommends fio tgt" in str(failure.value)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(steps, "CACHE", tmp_path)
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    return tmp_path


def test_no_network_is_told_as_such(cache: Path) -> None:
    words = "W: Failed to fetch http://x: Temporary failure resolving 'x'"
    with pytest.raises(steps.Failure, match=r"cannot fetch y: no network \(z\); connect it"):
        steps.run(["sh", "-c", f'echo "{words}"; exit 100'], log="t", doing="fetch y", needs="z", cwd=cache)


def test_another_failure_shows_its_last_word_and_its_log(cache: Path) -> None:
    with pytest.raises(steps.Failure, match=r"cannot do it: it broke.*log/t\.log"):
        steps.run(["sh", "-c", "echo it broke; exit 1"], log="t", doing="do it", cwd=cache)
    with pytest.raises(steps.Failure, match="no-such-tool is missing; run `make setup`"):
        steps.run(["no-such-tool"], log="t", doing="do it", cwd=cache)


def test_what_is_made_is_made_once_and_again_when_its_recipe_changes(cache: Path) -> None:
    artefact, stamp, built = cache / "artefact", cache / "stamp", []

    def build() -> None:
        built.append(1)
        artefact.touch()

    for recipe, times in (("one", 1), ("one", 1), ("two", 2)):
        steps.make("thing", [artefact], stamp, recipe, build)
        assert len(built) == times
    artefact.unlink()
    steps.make("thing", [artefact], stamp, "two", build)
    assert len(built) == 3, "a lost artefact was not made again"
