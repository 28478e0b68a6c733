"""Becoming an ordinary user who can reach this checkout, wherever root has put it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def opened(checkout: Path = ROOT) -> str:
    """Shell commands, for a mount namespace of one's own, that let everybody reach the checkout: a directory
    on the way to it that is closed to others, as /root is, is covered by an open one that holds the checkout
    alone. Nothing where the way is open.
    """
    closed = next((each for each in reversed(checkout.parents) if not each.stat().st_mode & 0o001), None)
    if closed is None:
        return ""
    return (
        f"mount --bind {checkout} /mnt; mount -t tmpfs -o mode=755 none {closed}; "
        f"mkdir -p {checkout}; mount --move /mnt {checkout}"
    )


def as_user(number: int, *argv: str) -> list[str]:
    """The command run by that user, in the checkout."""
    drop = f"setpriv --reuid={number} --regid={number} --clear-groups"
    script = f'set -e\n{opened()}\ncd {ROOT}\nexec {drop} "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", *argv]
