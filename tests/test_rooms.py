"""The rooms of the package are as CONTRIBUTING.md has them."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "dpt_jax"
LONGEST_FILE = 300  # lines
FACE = ("__init__", "__main__", "version")  # what has no room


def rows():
    """Return the rooms of each row of the table, from the top one."""
    table = (ROOT / "CONTRIBUTING.md").read_text().split("## Rooms")[1].split("##")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    return [re.findall(r"`(\w+)(?:/|\.py)`", cell) for cell in cells]


def imports(file):
    """Return the modules of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if name.startswith("dpt_jax.")}


def modules():
    """Return the files of the package by module."""
    files = [file for file in PACKAGE.rglob("*.py") if "assets" not in file.parts]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}


def room_of(module):
    return module.split(".")[1]


def test_every_room_is_in_the_table():
    there = {room_of(module) for module in modules()} - set(FACE)
    assert there == {room for row in rows() for room in row}


def test_rooms_import_from_those_below():
    floors = {room: floor for floor, row in enumerate(rows()) for room in row}
    upward = [
        (module, name)
        for module, file in modules().items()
        for name in imports(file)
        if room_of(module) in floors and floors.get(room_of(name), 99) < floors[room_of(module)]
    ]
    assert not upward


def test_no_files_import_each_other_in_a_circle():
    files = modules()
    left = {module: imports(file) & set(files) - {module} for module, file in files.items()}
    while ground := [module for module, below in left.items() if not below & set(left)]:
        for module in ground:
            del left[module]
    assert not left


def test_no_file_is_long():
    lines = {module: len(file.read_text().splitlines()) for module, file in modules().items()}
    assert {name: count for name, count in lines.items() if count > LONGEST_FILE} == {}
