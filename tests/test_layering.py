"""Imports only go down, and the core neither compiles nor knows the laboratory."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import pgjax
from pgjax import exact

ROOT = Path(pgjax.__file__).parent

# From the ground up; a module imports from the layers below its own. What a name stands for may
# be a module or a package. Modules that share a layer may use each other only as PEERS says.
LAYERS = (
    {"ahead", "backends", "bits", "checks", "cost"},
    {"batching", "sharding"},
    {"chunks"},
    {"distributions", "networks", "returns", "baselines", "stepping", "score"},
    {"heads", "policies", "environments", "estimators"},
    {"rollout", "restarts"},
    {"gradients", "exact"},
    {"train", "audit"},
    {"lab"},
    {"__main__"},
)
PEERS = {
    ("restarts", "rollout"),
    ("exact", "gradients"),
    ("score", "baselines"),
    ("policies", "heads"),
}


def layer(part: str) -> int:
    """How high a part of pgjax stands."""
    (height,) = [height for height, parts in enumerate(LAYERS) if part in parts]
    return height


def part_of(path: Path) -> str:
    """The part of pgjax a file belongs to: its package, or its own name."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(source: str) -> set[str]:
    """The parts of pgjax that a module imports, wherever in the file it does."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("pgjax.<relative>")
    return {name.split(".")[1] for name in names if name.startswith("pgjax.")}


def violations(part: str, source: str) -> list[str]:
    """Imports of `source`, a module of `part`, that do not go down."""
    known = set().union(*LAYERS)
    targets = imported_parts(source) - {part}
    return [
        target
        for target in sorted(targets)
        # `from pgjax import __version__` names no part.
        if not target.startswith("__")
        and (target not in known or not (layer(target) < layer(part) or (part, target) in PEERS))
    ]


def compiles(source: str) -> bool:
    """Whether a module mentions `jit`, under any name it could be imported by."""
    return any(
        (isinstance(node, ast.Attribute) and node.attr in ("jit", "pjit"))
        or (isinstance(node, ast.alias) and node.name in ("jit", "pjit"))
        for node in ast.walk(ast.parse(source))
    )


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
CORE = [path for path in FILES if part_of(path) not in ("lab", "__main__")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    assert violations(part_of(path), path.read_text()) == []


# What an audit measures is a compiled program; what flags XLA has, only a compiled program tells.
MEASURING = {"audit", "cost", "backends"}
UNCOMPILED = [path for path in CORE if part_of(path) not in MEASURING]


@pytest.mark.parametrize("path", UNCOMPILED, ids=lambda path: str(path.relative_to(ROOT)))
def test_core_does_not_compile(path):
    assert not compiles(path.read_text())


def test_no_name_of_the_oracle_hides_a_module():
    for module in pkgutil.iter_modules(exact.__path__):
        importlib.import_module(f"pgjax.exact.{module.name}")
        assert inspect.ismodule(getattr(exact, module.name))


def test_the_package_itself_imports_nothing():
    # `pgjax --help` must not wait for JAX.
    assert imported_parts((ROOT / "__init__.py").read_text()) == set()


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("rollout", "from pgjax.lab import config"),
        ("score", "import pgjax.train"),
        ("estimators", "def f():\n    from pgjax import rollout"),
        ("gradients", "from pgjax.train import init"),
        ("policies", "from pgjax import estimators"),
        ("score", "from . import returns"),
        ("train", "from pgjax import unheard_of"),
    ],
)
def test_imports_that_go_up_are_seen(part, source):
    assert violations(part, source) != []


@pytest.mark.parametrize(
    "source",
    ["import jax\nf = jax.jit(abs)", "from jax import jit\nf = jit(abs)", "@jax.jit\ndef f(): ..."],
)
def test_compilation_is_seen(source):
    assert compiles(source)
