"""What every file has, and what none has."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from tests.tidy.sources import ROOT, committed, modules, parsed

PRODUCT = ("controlplane", "node", "chaos")
#: Words of unfinished work, put together here so that this file has none.
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b")
#: Folders of the machine this was written on.
MACHINE_PATHS = re.compile(r"(?<![\w.])/(" + "|".join(("wo" + "rk", "ro" + "ot", "home/[a-z]+")) + r")/")
TEXT = {".cfg", ".ini", ".json", ".md", ".proto", ".py", ".pyi", ".sh", ".toml", ".txt", ".yaml", ".yml", ""}


def texts() -> list[tuple[str, str]]:
    """Committed text files, generated code and locks left out."""
    found = []
    for path in committed():
        name = path.relative_to(ROOT).as_posix()
        if path.suffix not in TEXT or name.startswith(("controlplane/pb/", "requirements/")):
            continue
        try:
            found.append((name, path.read_text()))
        except UnicodeDecodeError:
            continue  # a binary file without a suffix
    return found


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_work_is_left_for_later_in_comments() -> None:
    assert lines_with(UNFINISHED) == []


def test_no_path_of_a_machine_is_named() -> None:
    assert lines_with(MACHINE_PATHS) == []


def test_every_module_says_what_it_is() -> None:
    # An empty __init__.py only makes a package; its modules speak for themselves.
    bare = [
        name
        for name in modules(*PRODUCT, "tests", "examples")
        if not ast.get_docstring(parsed(name)) and not (name.endswith("__init__.py") and not parsed(name).body)
    ]
    assert bare == []


@pytest.mark.parametrize("name", [n for n in modules(*PRODUCT) if not n.endswith(("__init__.py", "__main__.py"))])
def test_a_modules_public_names_are_listed_and_exist(name: str) -> None:
    module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
    listed = getattr(module, "__all__", None)
    assert listed is not None, f"{name} has no __all__"
    assert len(listed) == len(set(listed))
    assert [each for each in listed if not hasattr(module, each)] == []


@pytest.mark.parametrize("name", [n for n in modules(*PRODUCT) if n.endswith("__init__.py")])
def test_a_packages_public_names_exist(name: str) -> None:
    module = importlib.import_module(name.removesuffix("/__init__.py").replace("/", "."))
    listed = getattr(module, "__all__", [])
    assert [each for each in listed if not hasattr(module, each)] == []


def packages() -> list[str]:
    """Folders of the product that hold modules, as paths."""
    found = {Path(name).parent.as_posix() for name in modules(*PRODUCT) if not name.endswith("__init__.py")}
    return sorted(found - {"controlplane"})


@pytest.mark.parametrize("package", packages())
def test_a_package_has_its_tests_where_they_are_looked_for(package: str) -> None:
    folder = ROOT / "tests" / "unit" / package.removeprefix("controlplane/")
    assert list(folder.glob("test_*.py")), f"no test_*.py in {folder.relative_to(ROOT)}"


def test_every_folder_of_tests_is_a_package() -> None:
    folders = {Path(name).parent for name in modules("tests")}
    assert [str(folder) for folder in sorted(folders) if not (ROOT / folder / "__init__.py").is_file()] == []
