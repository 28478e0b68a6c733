"""The design's "what must never be", read from the imports of the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
DRIVERS = ("power", "storage", "network", "console", "provision", "hostlink")
CONTROLLING = ("controller", "devices", "technician", "walker", "actions", "powerwatch", "store")
ABOVE = (*CONTROLLING[:-1], "agent", "northbound", "cli", "client", "doctor", "emulator")

# Who may read argv and environment beside cli.py, and why.
ENVIRONMENT = {
    "nicagent/proc.py": "PATH, to find tools",
    "nicagent/agent.py": "NOTIFY_SOCKET, by sd_notify(3)",
}
MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
CHANGERS = ("append", "add", "update", "pop", "popitem", "clear", "extend", "insert", "remove", "setdefault")
FROZEN_BY_TYPE = ("Mapping", "Sequence", "Final", "Collection", "frozenset", "tuple")


def sources(*roots: str) -> list[Path]:
    found = []
    for root in roots:
        path = REPO / root
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return [path for path in found if path.exists()]


def module(path: Path) -> str:
    return path.relative_to(REPO).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Full names of everything that a file imports, also inside functions and for type checking."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def offences(paths: list[Path], *forbidden: str, allowed: tuple[str, ...] = ()) -> list[str]:
    """`a imports b` for every import of something forbidden, or of something inside it."""
    return [
        f"{module(path)} imports {name}"
        for path in paths
        for name in sorted(imports(path))
        if within(name, forbidden) and not within(name, allowed)
    ]


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def test_the_libvirt_library_knows_nothing_of_hardware() -> None:
    assert offences(sources("hypervisor_shim"), "nicagent") == []


@pytest.mark.parametrize("kind", DRIVERS)
def test_no_driver_calls_up(kind: str) -> None:
    above = tuple(f"nicagent.{each}" for each in ABOVE)
    assert offences(sources(f"nicagent/{kind}"), *above, "hypervisor_shim") == []


@pytest.mark.parametrize("kind", DRIVERS)
def test_no_driver_knows_another_kind(kind: str) -> None:
    others = tuple(f"nicagent.{each}" for each in DRIVERS if each != kind)
    assert offences(sources(f"nicagent/{kind}"), *others) == []


def test_the_model_imports_nothing_of_ours() -> None:
    assert offences(sources("nicagent/model.py", "nicagent/errors.py"), "nicagent", "hypervisor_shim") == []


def test_the_lifecycle_is_a_table_and_does_no_io() -> None:
    lifecycle = sources("nicagent/lifecycle.py")
    assert offences(lifecycle, "nicagent", allowed=("nicagent.model", "nicagent.errors")) == []
    harmless = {"__future__", "collections", "dataclasses", "enum", "nicagent", "typing"}
    for path in [*lifecycle, *sources("nicagent/model.py")]:
        assert {name.split(".")[0] for name in imports(path)} <= harmless, f"{path.name} can do I/O"


def test_faces_import_no_driver() -> None:
    """They are clients of the controller. Console sessions are the exception: a byte stream that the agent
    hands to a face with the host's console object, whose type has to be named.
    """
    drivers = tuple(f"nicagent.{kind}" for kind in DRIVERS)
    contracts = tuple(f"nicagent.{kind}.contract" for kind in DRIVERS)
    consoles = ("nicagent.console.serial.SerialConsole", "nicagent.console.serial.ConsoleSession")
    allowed = (*contracts, *consoles)
    assert offences(sources("nicagent/northbound"), *drivers, allowed=allowed) == []


def test_the_controller_knows_drivers_by_contract_only() -> None:
    drivers = tuple(f"nicagent.{kind}" for kind in DRIVERS)
    contracts = tuple(f"nicagent.{kind}.contract" for kind in DRIVERS)
    paths = sources(*(f"nicagent/{each}.py" for each in CONTROLLING))
    assert offences(paths, *drivers, "nicagent.northbound", "nicagent.agent", allowed=contracts) == []


def test_the_emulator_is_started_by_the_command_and_known_to_nobody_else() -> None:
    emulator = sources("nicagent/emulator")
    others = [path for path in sources("nicagent", "hypervisor_shim") if path not in emulator]
    assert offences([p for p in others if p.name != "cli.py"], "nicagent.emulator") == []


def test_the_emulator_imitates_the_outside_world_not_our_parts() -> None:
    """It may share the wires of its lines and of its PCIe slot, and nothing of the agent's own side."""
    wires = ("nicagent.power.linewire", "nicagent.storage.slotwire")
    inside = (
        *(f"nicagent.{kind}" for kind in DRIVERS),
        *(f"nicagent.{each}" for each in ABOVE if each != "emulator"),
    )
    assert offences(sources("nicagent/emulator"), *inside, allowed=wires) == []


def is_worker(path: Path) -> bool:
    """A process of its own, started by its module name: its argv is its interface."""
    return path.name == "__main__.py" or '__name__ == "__main__"' in path.read_text()


def test_argv_and_environment_are_read_in_one_place() -> None:
    found = []
    for path in sources("nicagent", "hypervisor_shim"):
        name = path.relative_to(REPO).as_posix()
        if name == "nicagent/cli.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            what = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if (what in ("os.environ", "os.getenv") and name not in ENVIRONMENT) or (
                what == "sys.argv" and not is_worker(path)
            ):
                found.append(f"{name} reads {what}")
    assert found == []


def test_those_that_may_read_the_environment_still_do() -> None:
    for name in ENVIRONMENT:
        assert "os.environ" in (REPO / name).read_text(), f"{name} needs no exception any more"


def module_state(path: Path) -> Iterator[str]:
    """Names at module level that hold something changeable and are not plainly constants: in capitals and
    changed by nobody, or of a type that has no way to change it (mypy keeps them so).
    """
    tree = ast.parse(path.read_text())
    changed = {ast.unparse(node.value) for node in ast.walk(tree) if changes(node)}  # type: ignore[attr-defined]
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not changeable(node.value):
            continue
        typed = isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation).startswith(FROZEN_BY_TYPE)
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            name = ast.unparse(target)
            if not (typed or (name.isupper() and name not in changed) or name == "__all__"):
                yield f"{module(path)}:{node.lineno} {name}"


def changeable(value: ast.expr | None) -> bool:
    return isinstance(value, MUTABLE) or (
        isinstance(value, ast.Call)
        and ast.unparse(value.func).rpartition(".")[2] in ("list", "dict", "set", "deque", "defaultdict")
    )


def changes(node: ast.AST) -> bool:
    """`X[…] = …`, `del X[…]`, `X.append(…)`: what changes `node.value`."""
    if isinstance(node, ast.Subscript):
        return isinstance(node.ctx, ast.Store | ast.Del)
    return isinstance(node, ast.Attribute) and node.attr in CHANGERS


def test_there_is_no_mutable_state_in_modules() -> None:
    found = [state for path in sources("nicagent", "hypervisor_shim") for state in module_state(path)]
    assert found == []
    for path in sources("nicagent", "hypervisor_shim"):
        statements = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Global)]
        assert not statements, f"{path} changes a module's state"


def test_processes_start_at_the_one_choke_point() -> None:
    """`subprocess` and asyncio's subprocesses belong to proc.py, with its deadlines and its pidfds."""
    found = []
    for path in sources("nicagent"):
        if path.name in ("proc.py", "labinit.py") or is_worker(path):
            continue  # labinit is process 1 of a lab's namespace: forking is what it is for
        found += [f"{module(path)} imports {name}" for name in imports(path) if within(name, ("subprocess",))]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called.rpartition(".")[2] in (
                    "create_subprocess_exec",
                    "create_subprocess_shell",
                    "Popen",
                ):
                    found.append(f"{module(path)} calls {called}")
                if called in ("os.system", "os.popen", "os.fork", "os.posix_spawn"):
                    found.append(f"{module(path)} calls {called}")
    assert found == []


def test_modules_fit_their_one_idea() -> None:
    """A guard against drift, far above the aim of 100 to 400 lines."""
    long = {
        module(path): lines
        for path in sources("nicagent", "hypervisor_shim", "boot")
        if (lines := len(path.read_text().splitlines())) > 600
    }
    assert long == {}
