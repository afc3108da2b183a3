"""Whether the steptape that the tests import is that of the checkout they are in, by the content of its files."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = {"steptape": "plugins", "steptape.compat": "compat", "steptape.shared_tests": "shared_tests"}
"""The packages by their folders in a checkout."""

SHIPPED = (".py", ".typed", ".json", ".j2")


def shipped(folder: Path) -> dict[Path, Path]:
    """Return the files of a package's folder that a wheel holds, by their place in the package."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.suffix in SHIPPED}
    return {place: path for place, path in found.items() if place.parts[0] != "tests"}


def difference(installed: Mapping[str, Path], root: Path = ROOT) -> str:
    """Return how packages that are installed in folders differ from those of a checkout, nothing where they do not."""
    for package, folder in installed.items():
        if folder.samefile(root / FOLDERS[package]):
            continue
        theirs, ours = shipped(folder), shipped(root / FOLDERS[package])
        if package == "steptape":  # as installed, the other two are in it
            theirs = {place: path for place, path in theirs.items() if f"steptape.{place.parts[0]}" not in FOLDERS}
        for place in sorted(theirs.keys() | ours.keys()):
            if place not in theirs:
                return f"{ours[place]} is not in {folder}"
            if place not in ours:
                return f"{theirs[place]} is no longer in {root / FOLDERS[package]}"
            if theirs[place].read_bytes() != ours[place].read_bytes():
                return f"{theirs[place]} differs from {ours[place]}"
    return ""


def stale() -> str:
    """Return how the steptape that is imported here differs from the checkout, nothing where it does not."""
    try:
        specs = {package: importlib.util.find_spec(package) for package in FOLDERS}
    except ModuleNotFoundError as error:
        return str(error)
    places = {package: spec.submodule_search_locations for package, spec in specs.items() if spec}
    missing = [package for package in FOLDERS if not places.get(package)]
    if missing:
        return f"{missing[0]} is not installed"
    return difference({package: Path(next(iter(place))) for package, place in places.items() if place})
