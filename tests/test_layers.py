"""Who may import whom, read off the import statements of the package.

Three towers (messages and machines; memory; transport) know nothing of each other and meet in
server and client; these two meet in relay, and with the sources in desktops. What is imported for
annotations alone counts like any other import.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "spiceshm"

FORBIDDEN: dict[tuple[str, ...], tuple[str, ...]] = {
    ("errors", "region", "fds", "scancodes", "events"): (PACKAGE,),
    ("nursery",): (PACKAGE, "!errors"),
    ("wire",): (PACKAGE, "!wire", "!errors"),
    # Of `events` and `scancodes`, which stand on nothing: what the messages of inputs mean.
    ("protocol",): (
        PACKAGE,
        "!protocol",
        "!wire",
        "!errors",
        "!fds",
        "!events",
        "!scancodes",
    ),
    ("memory",): (PACKAGE, "!memory", "!errors", "!fds", "!region"),
    ("codecs",): (PACKAGE, "!codecs", "!errors", "!region"),
    ("transport",): (PACKAGE, "!transport", "!errors", "!fds", "!nursery"),
    ("sources",): ("spiceshm.client", "spiceshm.wire", "spiceshm.protocol", "spiceshm.transport"),
    ("server",): ("spiceshm.client", "spiceshm.sources", "spiceshm.cli"),
    ("client",): ("spiceshm.server", "spiceshm.sources", "spiceshm.cli"),
    ("sources", "server", "client"): ("spiceshm.desktops", "spiceshm.relay"),
    ("sources", "server", "client", "desktops", "relay", "cli"): ("spiceshm.testing",),
    ("desktops",): (PACKAGE, "!client", "!server", "!sources", "!nursery", "!errors"),
    ("relay",): (
        PACKAGE,
        "!client",
        "!server",
        "!transport",
        "!wire",
        "!nursery",
        "!errors",
        "!events",
        "!region",
    ),
    ("testing",): (PACKAGE, "!sync", "!errors"),
    ("wire", "protocol", "memory", "codecs"): (
        "trio",
        "socket",
        "time",
        "asyncio",
        "select",
        "threading",
    ),
}
"""Modules at the top of the package, and what none of them imports; ``!`` makes an exception."""


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package under ``root`` by its dotted name."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: set[str]) -> set[str]:
    """The dotted names that one module imports, relative ones spelled out."""
    names: set[str] = set()
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                names.add(inner if inner in known else origin)
    return names


def within(name: str, other: str) -> bool:
    return name == other or name.startswith(other + ".")


def breaches(root: Path) -> list[str]:
    """Every import that a rule forbids, as "who imports what"."""
    found = []
    all_modules = modules(root)
    for name, path in all_modules.items():
        for parts, rules in FORBIDDEN.items():
            if not any(within(name, f"{PACKAGE}.{part}") for part in parts):
                continue
            banned = [rule for rule in rules if not rule.startswith("!")]
            allowed = [f"{PACKAGE}.{rule[1:]}" for rule in rules if rule.startswith("!")]
            found += [
                f"{name} imports {target}"
                for target in sorted(imported(name, path, set(all_modules)))
                if any(within(target, ban) for ban in banned)
                and not any(within(target, exception) for exception in allowed)
            ]
    return found


def test_the_package_keeps_to_its_layers() -> None:
    assert breaches(ROOT) == []


def test_every_rule_speaks_of_something_that_exists() -> None:
    names = set(modules(ROOT))
    for parts, rules in FORBIDDEN.items():
        for part in (*parts, *(rule[1:] for rule in rules if rule.startswith("!"))):
            assert f"{PACKAGE}.{part}" in names
        for rule in rules:
            assert not rule.startswith(PACKAGE) or rule in names


def test_the_towers_meet_in_server_and_client() -> None:
    known = set(modules(ROOT))
    for part in ("server", "client"):
        seen: set[str] = set()
        for name, path in modules(ROOT).items():
            if within(name, f"{PACKAGE}.{part}"):
                seen |= {
                    target.split(".")[1] for target in imported(name, path, known) if "." in target
                }
        assert {"wire", "protocol", "memory", "transport"} <= seen, part


# The test can fail


def made_up(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for folder in path.relative_to(root).parents:
            if folder.name:
                (root / folder / "__init__.py").touch()
    return root


TREES = {
    "errors.py": ("from . import region\n", "spiceshm.region"),
    "region.py": ("import spiceshm.wire.shm\n", "spiceshm.wire.shm"),
    "fds.py": ("from .errors import Refusal\n", "spiceshm.errors"),
    "nursery.py": ("from .errors import Refusal\nfrom .fds import Descriptor\n", "spiceshm.fds"),
    "wire/shm.py": ("from ..protocol import State\n", "spiceshm.protocol"),
    "wire/deep/er.py": ("from ... import memory\n", "spiceshm.memory"),
    "protocol/__init__.py": ("from ..memory.pool import Pool\n", "spiceshm.memory.pool"),
    "protocol/link.py": ("def late():\n    import time\n", "time"),
    "memory/pool.py": ("from spiceshm.transport import Stream\n", "spiceshm.transport"),
    "memory/segment.py": ("import trio.lowlevel as low\n", "trio.lowlevel"),
    "codecs/lz.py": ("from ..memory import Segment\n", "spiceshm.memory"),
    "transport/stream.py": ("from ..wire import Message\n", "spiceshm.wire"),
    "transport/__init__.py": ("from .. import memory as m\n", "spiceshm.memory"),
    "sources/x11.py": (
        "import typing\nif typing.TYPE_CHECKING:\n    from ..client import Frame\n",
        "spiceshm.client",
    ),
    "sources/pattern.py": ("from ..wire.types import Rect\n", "spiceshm.wire.types"),
    "client/display.py": ("from ..server import serve\n", "spiceshm.server"),
}
OTHERS = (
    {f"{part}.py": "" for part in ("errors", "region", "fds", "nursery")}
    | {
        f"{part}/__init__.py": ""
        for part in ("wire", "protocol", "memory", "transport", "server", "client")
    }
    | {"memory/pool.py": "", "wire/shm.py": "", "wire/types.py": ""}
)


@pytest.mark.parametrize(("name", "tree"), TREES.items(), ids=TREES.keys())
def test_a_forbidden_import_is_found(name: str, tree: tuple[str, str], tmp_path: Path) -> None:
    text, target = tree
    made_up(tmp_path, {**OTHERS, name: text})
    who = f"{PACKAGE}.{name.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"
    assert breaches(tmp_path) == [f"{who} imports {target}"]


def test_allowed_imports_are_not_found(tmp_path: Path) -> None:
    files = {
        "nursery.py": "import trio\nfrom .errors import SpiceShmError\n",
        "wire/shm.py": "from .types import Rect\nfrom ..errors import Refusal\n",
        "protocol/__init__.py": "from ..wire import shm\nfrom ..fds import Descriptor\n",
        "transport/stream.py": "import socket, time, trio\nfrom ..fds import Descriptor\n",
        "server/__init__.py": "from .. import memory, protocol, region, transport, wire\n",
        "sources/x11.py": "from ..server import Display\nfrom ..region import Rect\n",
    }
    assert breaches(made_up(tmp_path, {**OTHERS, **files})) == []
