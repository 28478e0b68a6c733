"""A stock viewer without a window: gtk-vnc's own library, in Debian's Python.

vnc_look.py HOST PORT [PASSWORD]          says "sees WIDTHxHEIGHT of NAME", or why it does not, and ends
vnc_look.py HOST PORT [PASSWORD] --stay   ends when it is hung up on, and says so
"""

from __future__ import annotations

import sys

import gi

gi.require_version("GVnc", "1.0")
from gi.repository import GLib, GVnc  # noqa: E402


def main() -> None:
    stay = "--stay" in sys.argv
    host, port, *password = [each for each in sys.argv[1:] if each != "--stay"]
    loop, viewer = GLib.MainLoop(), GVnc.Connection()

    def say(words: str, *, last: bool = False) -> None:
        print(words, flush=True)
        if last:
            loop.quit()

    def authenticate(_: object, __: object) -> None:
        viewer.set_credential(GVnc.ConnectionCredential.PASSWORD, password[0] if password else "")

    def initialized(_: object) -> None:
        size = f"{viewer.get_width()}x{viewer.get_height()}"
        say(f"sees {size} of {viewer.get_name()}", last=not stay)

    viewer.connect("vnc-auth-choose-type", lambda *_: viewer.set_auth_type(2 if password else 1))
    viewer.connect("vnc-auth-credential", authenticate)
    viewer.connect("vnc-auth-failure", lambda _, why: say(f"is refused: {why}"))
    viewer.connect("vnc-error", lambda _, why: say(f"fails: {why}"))
    viewer.connect("vnc-initialized", initialized)
    viewer.connect("vnc-disconnected", lambda _: say("is hung up on", last=True))
    viewer.set_shared(True)
    viewer.open_host(host, port)
    GLib.timeout_add_seconds(60, lambda: say("waited for nothing", last=True))
    loop.run()


main()
