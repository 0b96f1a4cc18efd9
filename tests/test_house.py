"""The architecture: rooms only, arrows down, no circles. Imports inside functions count too."""

import ast
import importlib
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = 'moe_jax', 'prune', 'train'


def modules() -> dict[str, Path]:
    """Dotted name of each module -> its file."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob('*.py')]
    parts = {path: path.relative_to(ROOT).with_suffix('').parts for path in files}
    return {'.'.join(p[:-1] if p[-1] == '__init__' else p): path for path, p in parts.items()}


def imports(path: Path, known: set[str]) -> set[str]:
    """Modules of ours that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {full if (full := f'{node.module}.{alias.name}') in known else node.module
                      for alias in node.names}
    return found & known


@pytest.fixture(scope='module')
def graph() -> dict[str, set[str]]:
    files = modules()
    return {name: imports(path, set(files)) - {name} for name, path in files.items()}


def circles(graph: dict[str, set[str]]) -> set[str]:
    """Modules that can be reached from themselves: what is left when leaves are taken off."""
    left = dict(graph)
    while leaves := {name for name, targets in left.items() if not targets & set(left)}:
        left = {name: targets for name, targets in left.items() if name not in leaves}
    # Taking off roots likewise leaves the circles and what lies between them.
    while roots := set(left) - set().union(*left.values()):
        left = {name: targets for name, targets in left.items() if name not in roots}
    return set(left)


def test_circles_are_found():
    graph = {'a': {'b'}, 'b': {'c'}, 'c': {'b'}, 'd': {'a'}, 'e': set()}
    assert circles(graph) == {'b', 'c'}


def test_no_module_imports_itself_in_a_circle(graph):
    # The faces are imported inside functions of the rooms above them.
    faces = set(PACKAGES)
    assert not circles({name: targets - faces for name, targets in graph.items()
                        if name not in faces})


@pytest.mark.parametrize('package', PACKAGES)
def test_there_are_rooms_and_nothing_beside_them(package):
    files = {path.name for path in (ROOT / package).iterdir() if path.is_file()}
    # The face, its stub of what it exports, and what `python -m` asks for.
    assert files - {'__main__.py'} == {'__init__.py', '__init__.pyi'}


@pytest.mark.parametrize('package', PACKAGES)
def test_a_face_exports_what_its_stub_names_and_no_room_hides_behind_a_function(package):
    face = importlib.import_module(package)
    stub = ast.parse((ROOT / package / '__init__.pyi').read_text())
    names = [alias.name for node in stub.body if isinstance(node, ast.ImportFrom)
             for alias in node.names]
    listed, = (ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    rooms = {path.parent.name for path in (ROOT / package).glob('*/__init__.py')}
    assert sorted(names) == sorted(listed) == sorted(face.__all__)
    assert not set(names) & rooms
    for name in names:
        getattr(face, name)


def test_contracts_name_packages_alone():
    settings = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['importlinter']
    for contract in settings['contracts']:
        if contract['type'] != 'layers':
            continue
        for layer in contract['layers']:
            for name in layer.split('|'):
                inside = [*contract.get('containers', []), name.strip()]
                assert ROOT.joinpath(*'.'.join(inside).split('.')).is_dir(), name


def test_every_room_stands_in_the_contract():
    """A room that no contract names would be unguarded."""
    settings = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['importlinter']
    named = {name.strip() for contract in settings['contracts'] if contract['type'] == 'layers'
             for layer in contract['layers'] for name in layer.split('|')}
    rooms = {path.parent.name for package in PACKAGES
             for path in (ROOT / package).glob('*/__init__.py')}
    assert rooms <= {name.rpartition('.')[2] for name in named}


def test_files_are_of_a_size_to_read():
    sizes = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: size for name, size in sizes.items() if size > 310} == {}
