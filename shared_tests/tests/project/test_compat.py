"""compat is the one funnel for the hosts' private names, and a host that lacks one of them is refused in words."""

import ast
import collections
import contextlib
import dataclasses
import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

import steptape
import steptape.compat
import steptape.shared_tests
from steptape import UnsupportedHostVersion

COMPAT = Path(steptape.compat.__file__).parent
HOSTS = ("torchdiffeq", "torchsde", "diffrax", "equinox")


def sources():
    """All modules of steptape but those of compat, and all tests."""
    found = set(Path(__file__).parents[1].rglob("*.py"))
    for package in (steptape, steptape.shared_tests):
        found |= set(Path(package.__file__).parent.rglob("*.py"))
    return sorted(path for path in found if path.parent != COMPAT)


def private(module):
    root, *parts = module.split(".")
    return root in HOSTS and any(part.startswith("_") or part == "internal" for part in parts)


def private_names(tree):
    """The private names of hosts that a module imports or reaches by attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if private(alias.name))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (name for a in node.names if private(name := f"{node.module}.{a.name}"))
        elif isinstance(node, ast.Attribute) and private(dotted := ast.unparse(node)) and "__" not in dotted:
            yield dotted


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from torchdiffeq._impl import misc", ["torchdiffeq._impl.misc"]),
        ("import diffrax._integrate", ["diffrax._integrate"]),
        ("from equinox import internal", ["equinox.internal"]),
        ("import torchsde\ntorchsde._core", ["torchsde._core"]),
        ("from torchdiffeq import odeint\nimport torchsde\ntorchsde.sdeint", []),
    ],
)
def test_a_private_name_is_seen(code, found):
    assert list(private_names(ast.parse(code))) == found


def test_no_other_module_touches_a_private_name_of_a_host():
    assert len(sources()) > 50
    for path in sources():
        assert list(private_names(ast.parse(path.read_text(encoding="utf-8")))) == [], path


def load(name):
    """A compat module, executed anew."""
    spec = importlib.util.spec_from_file_location(f"fresh{name}", COMPAT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def imported(name):
    """The module and the name of each private import of a compat module."""
    tree = ast.parse((COMPAT / f"{name}.py").read_text(encoding="utf-8"))
    return [
        (node.module, alias.name)
        for block in ast.walk(tree)
        if isinstance(block, ast.Try)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]


def reached(name):
    """The dotted private attributes that a compat module reads when it is imported."""
    tree = ast.parse((COMPAT / f"{name}.py").read_text(encoding="utf-8"))
    blocks = [block for block in tree.body if isinstance(block, ast.Try)]
    attributes = [node for block in blocks for node in ast.walk(block) if isinstance(node, ast.Attribute)]
    return sorted({ast.unparse(node) for node in attributes if node.attr.startswith("_") and "__" not in node.attr})


IMPORTS = [(f"_{host}", *pair) for host in (*HOSTS, "torch") for pair in imported(f"_{host}")]
ATTRIBUTES = [(f"_{host}", dotted) for host in (*HOSTS, "torch") for dotted in reached(f"_{host}")]


@contextlib.contextmanager
def refused(name):
    host = name.lstrip("_")
    with pytest.raises(
        UnsupportedHostVersion, match=rf"{host} does not offer here: .*\. {host} .* is installed, {host}"
    ):
        yield


@pytest.mark.parametrize(("name", "module", "attribute"), IMPORTS, ids=lambda part: part)
def test_a_name_that_is_gone_is_refused_at_import(monkeypatch, name, module, attribute):
    pytest.importorskip(name[1:])
    load(name)
    monkeypatch.delattr(importlib.import_module(module), attribute)
    if f"{module}.{attribute}" in sys.modules:
        monkeypatch.setitem(sys.modules, f"{module}.{attribute}", None)
    with refused(name):
        load(name)


@pytest.mark.parametrize(("name", "dotted"), ATTRIBUTES)
def test_an_attribute_that_is_gone_is_refused_at_import(monkeypatch, name, dotted):
    pytest.importorskip(name[1:])
    path, attribute = dotted.rsplit(".", 1)
    owner = eval(path, vars(load(name)))
    monkeypatch.delattr(owner, attribute)
    with refused(name):
        load(name)


@pytest.mark.parametrize(
    "attribute", ["integrate", "_advance", "_before_integrate", "_adaptive_step", "_interp_fit", "valid_callbacks"]
)
def test_a_renamed_part_of_torchdiffeq_s_loop_is_refused_at_import(monkeypatch, attribute):
    rk_common = pytest.importorskip("torchdiffeq._impl.rk_common")
    owners = [cls for cls in rk_common.RKAdaptiveStepsizeODESolver.__mro__ if attribute in vars(cls)]
    if not owners:
        pytest.skip("this torchdiffeq has no callbacks")
    for owner in owners:
        monkeypatch.delattr(owner, attribute)
    with refused("_torchdiffeq"):
        load("_torchdiffeq")


@pytest.mark.parametrize(("owner", "field"), [("_ButcherTableau", "c_sol"), ("_RungeKuttaState", "interp_coeff")])
def test_a_renamed_field_of_torchdiffeq_s_records_is_refused_at_import(monkeypatch, owner, field):
    rk_common = pytest.importorskip("torchdiffeq._impl.rk_common")
    fields = [name if name != field else "renamed" for name in getattr(rk_common, owner)._fields]
    monkeypatch.setattr(rk_common, owner, collections.namedtuple(owner, fields))
    with refused("_torchdiffeq"):
        load("_torchdiffeq")


def test_a_multistep_solver_that_keeps_its_history_elsewhere_is_refused_at_import(monkeypatch):
    fixed_adams = pytest.importorskip("torchdiffeq._impl.fixed_adams")
    monkeypatch.setattr(fixed_adams.AdamsBashforthMoulton, "__init__", lambda self, *args, **kwargs: None)
    with refused("_torchdiffeq"):
        load("_torchdiffeq")


def test_callbacks_that_torchdiffeq_no_longer_lists_are_refused_at_import(monkeypatch):
    rk_common = pytest.importorskip("torchdiffeq._impl.rk_common")
    solver = rk_common.RKAdaptiveStepsizeODESolver
    monkeypatch.setattr(solver, "valid_callbacks", classmethod(lambda cls: {"callback_step"}), raising=False)
    with refused("_torchdiffeq"):
        load("_torchdiffeq")


@pytest.mark.parametrize("field", ["y", "tprev", "made_jump", "num_accepted_steps", "save_state"])
def test_a_renamed_field_of_diffrax_s_state_is_refused_at_import(monkeypatch, field):
    integrate = pytest.importorskip("diffrax._integrate")
    names = [f.name if f.name != field else f"{field}_" for f in dataclasses.fields(integrate.State)]
    monkeypatch.setattr(integrate, "State", dataclasses.make_dataclass("State", names))
    with refused("_diffrax"):
        load("_diffrax")


def test_a_renamed_argument_of_diffrax_s_loop_is_refused_at_import(monkeypatch):
    integrate = pytest.importorskip("diffrax._integrate")
    monkeypatch.setattr(integrate, "loop", lambda *, outer_loop, **kwargs: None)
    with refused("_diffrax"):
        load("_diffrax")


def test_a_host_that_is_not_installed_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchsde", None)
    monkeypatch.setitem(sys.modules, "torchsde._core", None)
    with pytest.raises(
        UnsupportedHostVersion, match=r"torchsde>=[\d.]+ is supported; .*pip install -U 'steptape\[sde\]'"
    ):
        load("_torchsde")
