"""The tests stop where the steptape they import is another one than that beside them."""

import shutil

import pytest

from steptape_helpers.checkout import FOLDERS, ROOT, difference, shipped


@pytest.fixture
def installed(tmp_path):
    """The folders of the packages as a wheel of this checkout installs them."""
    places = {package: tmp_path.joinpath(*package.split(".")) for package in FOLDERS}
    for package, folder in places.items():
        for place, path in shipped(ROOT / FOLDERS[package]).items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / place)
    return places


def test_a_wheel_of_this_checkout_and_the_checkout_itself_are_it(installed):
    assert difference(installed) == ""
    assert difference({package: ROOT / folder for package, folder in FOLDERS.items()}) == ""


def test_a_module_that_was_edited_is_named(installed):
    edited = installed["steptape"] / "_plan.py"
    edited.write_text(edited.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert difference(installed) == f"{edited} differs from {ROOT / 'plugins' / '_plan.py'}"


def test_a_module_that_is_new_is_named(installed):
    (installed["steptape.shared_tests"] / "parity" / "grids.json").unlink()
    assert "grids.json is not in" in difference(installed)


def test_a_module_that_is_gone_is_named(installed):
    (installed["steptape.compat"] / "_gone.py").touch()
    assert "_gone.py is no longer in" in difference(installed)
