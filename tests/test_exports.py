"""What the package says of itself: every exported name is there, in order, and documented."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pickle
import pkgutil
import re
import subprocess
import sys
import types
from itertools import pairwise
from pathlib import Path

import pytest

import spiceshm

PACKAGES = ["spiceshm"] + [
    f"spiceshm.{module.name}" for module in pkgutil.iter_modules(spiceshm.__path__) if module.ispkg
]
EXPORTING = [name for name in PACKAGES if hasattr(importlib.import_module(name), "__all__")]
NAMES = [(name, export) for name in EXPORTING for export in importlib.import_module(name).__all__]


def order(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions."""
    rank = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return rank, name


def described_beside(module: types.ModuleType, name: str) -> bool:
    """Whether a string stands behind the assignment of ``name`` in the source of a module."""
    body = ast.parse(inspect.getsource(module)).body
    for node, after in pairwise(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    return False


def is_alias(module: types.ModuleType, name: str) -> bool:
    """Whether a name is another one's or a choice of others: its right side says what it is."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            return "TypeAlias" in ast.unparse(node.annotation)
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == [name]:
            return isinstance(node.value, ast.BinOp | ast.Subscript)
    return False


def home_of(package: str, name: str) -> types.ModuleType:
    """The module that a package has a name from."""
    root = importlib.import_module(package)
    for node in ast.walk(ast.parse(inspect.getsource(root))):
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return importlib.import_module("." * node.level + (node.module or ""), package)
    return root


def has_words(value: object) -> bool:
    """Whether it has a docstring that somebody wrote: dataclasses and the like make their own."""
    words = inspect.getdoc(value) if not inspect.isclass(value) else value.__dict__.get("__doc__")
    return bool(words) and not str(words).startswith(f"{getattr(value, '__name__', '')}(")


def test_packages_that_export_anything_are_found() -> None:
    assert {"spiceshm", "spiceshm.wire", "spiceshm.protocol", "spiceshm.memory"} <= set(EXPORTING)
    assert {"spiceshm.server", "spiceshm.client", "spiceshm.transport"} <= set(EXPORTING)


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_every_exported_name_exists(package: str, name: str) -> None:
    assert hasattr(importlib.import_module(package), name)


@pytest.mark.parametrize("package", EXPORTING)
def test_exports_are_sorted_and_named_once(package: str) -> None:
    names = importlib.import_module(package).__all__
    assert list(names) == sorted(set(names), key=order)


@pytest.mark.parametrize("package", EXPORTING)
def test_nothing_public_is_left_out(package: str) -> None:
    """What a package's own __init__ imports by name it also exports."""
    root = importlib.import_module(package)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(inspect.getsource(root)))
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert imported == set(root.__all__)


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_every_exported_name_is_documented(package: str, name: str) -> None:
    value = getattr(importlib.import_module(package), name)
    if isinstance(value, types.ModuleType) or inspect.isclass(value) or inspect.isroutine(value):
        assert has_words(value)
    else:
        home = home_of(package, name)
        words = described_beside(home, name) or f"``{name}" in (home.__doc__ or "")
        assert words or is_alias(home, name)


@pytest.mark.parametrize("name", spiceshm.__all__)
def test_what_users_call_is_documented(name: str) -> None:
    value = getattr(spiceshm, name)
    if inspect.isclass(value):
        for key, member in vars(value).items():
            if inspect.isfunction(member) and not key.startswith("_"):
                assert has_words(member), f"{name}.{key}"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_says_what_it_is(package: str) -> None:
    root = importlib.import_module(package)
    for module in [root, *map(importlib.import_module, modules_in(root))]:
        assert has_words(module), module.__name__


def modules_in(package: types.ModuleType) -> list[str]:
    return [
        f"{package.__name__}.{module.name}"
        for module in pkgutil.iter_modules(package.__path__)
        if module.name not in ("__main__", "xscreen", "x11")  # need the extra x11
    ]


def named_on_the_map() -> set[str]:
    """The first column of the map in ``spiceshm.__doc__``."""
    lines = re.findall(r"^    ([a-z0-9_, ]+?)  ", spiceshm.__doc__ or "", re.MULTILINE)
    return {name for line in lines for name in line.split(", ")}


def test_the_map_names_every_subpackage_and_nothing_else() -> None:
    there = {module.name for module in pkgutil.iter_modules(spiceshm.__path__)}
    packages = {name.removeprefix("spiceshm.") for name in PACKAGES[1:]}
    assert packages <= named_on_the_map() <= there


def test_the_version_is_the_one_that_is_installed() -> None:
    text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text()
    assert f'version = "{spiceshm.__version__}"' in text


# The test can fail


def test_made_up_docstrings_are_none() -> None:
    @dataclasses.dataclass
    class Silent:
        number: int

    class Heir(Silent):
        pass

    class Said:
        """Words."""

    assert Silent.__doc__
    assert [has_words(kind) for kind in (Silent, Heir, Said)] == [False, False, True]


def test_the_order_is_one() -> None:
    names = ["Zebra", "serve", "TABLES", "Ant", "accept"]
    assert sorted(names, key=order) == ["TABLES", "Ant", "Zebra", "accept", "serve"]


@pytest.mark.parametrize("program", ["server", "client"])
def test_help_waits_for_nothing_heavy(program: str) -> None:
    script = f"""
import sys
from spiceshm.cli.{program} import main
sys.argv = ["program", "--help"]
try:
    main()
except SystemExit as end:
    assert end.code == 0
print(sorted({{"construct", "cryptography", "numpy", "trio"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "examples:" in done.stdout


def test_what_is_imported_later_is_what_is_declared() -> None:
    for name in spiceshm._LATER:
        assert getattr(spiceshm, name) is getattr(home_of("spiceshm", name), name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        spiceshm.nothing  # noqa: B018
    assert set(spiceshm.__all__) <= set(dir(spiceshm))


def test_the_ends_are_attributes_of_the_package() -> None:
    script = "import spiceshm; spiceshm.client.connect; spiceshm.server.serve"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    "error",
    [spiceshm.RemoteProtocolError("m", "f", "d"), spiceshm.LinkRefused(7, "no"), ValueError("x")],
)
def test_errors_pass_between_processes(error: Exception) -> None:
    error.args = (f"unix:/s: {error}",)
    same = pickle.loads(pickle.dumps(error))
    assert type(same) is type(error)
    assert str(same) == str(error)
    assert vars(same) == vars(error)
