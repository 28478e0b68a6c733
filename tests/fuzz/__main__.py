"""`make fuzz SECONDS=600`: a campaign led by coverage (atheris), one target after the other.

Inputs that reach something new stay in .cache/fuzz between campaigns; an input that does what none may is put
into `corpus/`, where the short run meets it again.
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import random
import resource
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
CACHE = ROOT / ".cache" / "fuzz"
LONGEST = 2048  # bytes of an input
BEGINNINGS = 200  # inputs of a first campaign
SLOW = 5.0  # seconds that no input may take
MEMORY_MIB = 2048


def hunt(name: str, seconds: int) -> None:
    """Fuzz one target in this process, then end it."""
    import atheris  # here alone: it instruments what is imported after it

    with atheris.instrument_imports(include=["hypervisor_shim", "nicagent"]):
        from .targets import targets
    target = targets()[name]
    found: dict[str, bytes] = {}

    def one(data: bytes) -> None:
        began = time.monotonic()
        try:
            target(data)
        except Exception as bad:
            where = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(bad.__traceback__)[-2:]]
            key = f"{type(bad).__name__} {where} {str(bad).strip()[-160:]}"
            if key not in found:
                found[key] = data
                _keep(name, data)
                print(f"\n{name}: {''.join(traceback.format_exception(bad))}", flush=True)
        if (took := time.monotonic() - began) > SLOW:
            print(f"\n{name}: an input took {took:.1f} s", flush=True)
            _keep(name, data)

    cache, kept = CACHE / name, CORPUS / name
    cache.mkdir(parents=True, exist_ok=True)
    if not any(cache.iterdir()):
        _begin(cache)
    folders = [str(each) for each in (cache, kept) if each.exists()]
    limits = [
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST}",
        f"-rss_limit_mb={MEMORY_MIB}",
        "-timeout=60",
    ]
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def tell() -> None:  # libFuzzer does not come back
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began) // 1024
        print(f"{name}: {len(found)} findings; memory grew by {grown} MiB", flush=True)

    atexit.register(tell)
    arguments = [sys.argv[0], *limits, "-seed=1", "-verbosity=0", "-print_final_stats=1", *folders]
    atheris.Setup(arguments, one, enable_python_coverage=True)
    atheris.Fuzz()


def _begin(cache: Path) -> None:
    """Choices at random reach far more at first than what grows from nothing."""
    choices = random.Random(0)
    for i in range(BEGINNINGS):
        (cache / f"begin{i}").write_bytes(choices.randbytes(choices.choice((40, 200, 600, LONGEST))))


def _keep(name: str, data: bytes) -> None:
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=300, help="of the whole campaign (default 300)")
    parser.add_argument("--hunt", metavar="TARGET", help="one target, in this process")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    arguments = parser.parse_args()
    if arguments.hunt:
        hunt(arguments.hunt, arguments.seconds)
    from .targets import targets

    names = arguments.targets or list(targets())
    each = max(arguments.seconds // len(names), 1)
    for name in names:
        argv = [sys.executable, "-m", "tests.fuzz", "--hunt", name, "--seconds", str(each)]
        subprocess.run(argv, cwd=ROOT, check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
