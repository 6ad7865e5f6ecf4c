"""The house: what may import what, what stays out, and what every function says."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from inspect import isclass
from pathlib import Path

import pytest

import jaxtheory

ROOT = Path(__file__).parents[1]

# Imports go one way, from the right to the left. A new package says here where it
# stands.
LOWER = {"_types", "batching", "linalg"}
MEASUREMENTS = {"kernels", "curvature", "collapse", "dynamics"}
CORE = LOWER | MEASUREMENTS | {"bounds", "compression", "optimizers"}
LEAVES = {"models", "data", "interop", "plot"}
MAY_IMPORT = {
    "_types": set(),
    "batching": {"_types"},
    "linalg": {"_types", "batching"},
    **dict.fromkeys(MEASUREMENTS, LOWER),
    "bounds": LOWER | MEASUREMENTS,
    "compression": LOWER | MEASUREMENTS | {"bounds"},
    "optimizers": LOWER,
    **dict.fromkeys(LEAVES, CORE),
    "portrait": CORE | LEAVES,
    "__init__": CORE | LEAVES,
}
HEAVY = {
    "matplotlib",
    "neural_tangents",
    "pandas",
    "sklearn",
    "tensorflow",
    "torch",
    "tyro",
}


def sources(*folders):
    """Each Python file of the folders: its path from the root, and its tree."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(), path)
            yield path.relative_to(ROOT), tree


def imports(nodes):
    """Every imported name in full: ``from a.b import c`` is ``a.b.c``."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def at_import_time(node):
    """The nodes below `node` that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from at_import_time(child)


def part_of(path):
    """Which part of the package a file belongs to."""
    return path.parts[1].removesuffix(".py")


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


def test_imports_go_one_way():
    wrong = []
    for path, tree in sources("jaxtheory"):
        part = part_of(path)
        for name in imports(ast.walk(tree)):
            assert not name.startswith("."), f"{path}: import {name} by its full name"
            package, _, rest = name.partition(".")
            other = rest.split(".")[0]
            if package == "jaxtheory" and other not in {part, *MAY_IMPORT[part]}:
                wrong.append(f"{path} must not import {name}")
    assert not wrong, "\n".join(wrong)


def test_private_modules_are_their_own_packages_affair():
    wrong = []
    for path, tree in sources("jaxtheory", "experiments", "tests"):
        for name in imports(ast.walk(tree)):
            words = name.split(".")
            own = {*words[1:2]} <= {"_types", part_of(path)}
            free = words[0] == "jaxtheory" and (own or path.parts[0] == "tests")
            if not free and any(map(is_private, words)):
                wrong.append(f"{path} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_private_attributes_of_dependencies():
    wrong = []
    for path, tree in sources("jaxtheory", "experiments", "tests"):
        modules = {
            alias.asname or alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                base = ast.unparse(node.value)
                if base.split(".")[0] in modules:
                    wrong.append(f"{path}:{node.lineno} reaches for {base}.{node.attr}")
    assert not wrong, "\n".join(wrong)


def test_matfree_lives_in_linalg_alone():
    users = {
        part_of(path)
        for path, tree in sources("jaxtheory")
        if any(name.split(".")[0] == "matfree" for name in imports(ast.walk(tree)))
    }
    assert users <= {"linalg"}


def test_nothing_heavy_at_module_level():
    wrong = []
    for path, tree in sources("jaxtheory"):
        if part_of(path) not in LEAVES | {"portrait"}:
            for name in imports(at_import_time(tree)):
                if name.split(".")[0] in HEAVY:
                    wrong.append(f"{path} imports {name} outside a function")
    assert not wrong, "\n".join(wrong)


def test_importing_jaxtheory_loads_nothing_heavy():
    program = "import sys, jaxtheory; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert "jaxtheory" in loaded
    assert not loaded & HEAVY


def test_what_loads_matplotlib_is_there_when_asked_for():
    program = "import jaxtheory; print(jaxtheory.plot.__name__, jaxtheory.portrait)"
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert run.stdout.startswith("jaxtheory.plot <module 'jaxtheory.portrait'")
    with pytest.raises(AttributeError, match="'jaxtheory' has no attribute 'notes'"):
        getattr(jaxtheory, "notes")  # noqa: B009


# Deferred annotations hide the shapes from the checks; a pickle runs what it loads.
@pytest.mark.parametrize("name", ["__future__.annotations.", "pickle."])
def test_never_imported(name):
    wrong = [
        str(path)
        for path, tree in sources("jaxtheory", "experiments", "tests")
        if any(f"{found}.".startswith(name) for found in imports(ast.walk(tree)))
    ]
    assert not wrong


def test_files_stay_readable():
    long = {
        str(path): lines
        for path, _ in sources("jaxtheory", "experiments", "tests")
        if (lines := (ROOT / path).read_text().count("\n")) > 500
    }
    assert not long


def public_functions():
    """Each public function of each public module, by its public name."""
    found = pkgutil.walk_packages(jaxtheory.__path__, "jaxtheory.")
    for info in found:
        if any(map(is_private, info.name.split("."))):
            continue
        for name, value in vars(importlib.import_module(info.name)).items():
            ours = str(getattr(value, "__module__", "")).startswith("jaxtheory")
            if ours and callable(value) and not (is_private(name) or isclass(value)):
                yield f"{info.name}.{name}", value


def test_public_functions_document_their_arguments():
    functions = dict(public_functions())
    assert "jaxtheory.batching.sum_examples" in functions
    wrong = [
        name
        for name, function in functions.items()
        if "\nArgs:\n" not in (inspect.getdoc(function) or "")
        and inspect.signature(function).parameters
    ]
    assert not wrong


def test_public_functions_check_their_random_key():
    takes_key = lambda f: "key" in inspect.signature(f).parameters
    functions = {n: f for n, f in public_functions() if takes_key(f)}
    assert "jaxtheory.linalg.nystrom" in functions
    checks = re.compile(r"check_\w*key\(|\bkey=key\b")  # itself, or by handing it on
    wrong = [n for n, f in functions.items() if not checks.search(inspect.getsource(f))]
    assert not wrong


def test_every_dependency_is_pinned_by_version_alone():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lists = [
        project["project"]["dependencies"],
        *project["project"]["optional-dependencies"].values(),
        *project["dependency-groups"].values(),
    ]
    bare = lambda requirement: re.split(r"[^\w-]", requirement)[0].lower()
    needed = {bare(requirement) for some in lists for requirement in some}
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    version = re.compile(r'[\w-]+==[\w.]+( ; python_version (<|>=) "3\.12")?')
    assert [pin for pin in pins if not version.fullmatch(pin)] == []
    assert needed - {"jaxtheory"} <= {bare(pin) for pin in pins}
