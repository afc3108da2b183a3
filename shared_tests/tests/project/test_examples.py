"""The programs of the gallery run, small, each by itself; and what the pages draw is drawn."""

import os
import re
import subprocess
import sys

import pytest

from steptape_helpers.checkout import ROOT

EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}
CHEAP = ("spiral",)

pytestmark = pytest.mark.skipif(not EXAMPLES, reason="runs from a checkout")


def by_file(path):
    return {**os.environ, "STEPTAPE_EXAMPLES": "small", "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}, str(path)


@pytest.mark.by_default(where=lambda name: name in CHEAP)
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name):
    text = EXAMPLES[name].read_text(encoding="utf-8")
    for module in {"matplotlib", *re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)}:
        pytest.importorskip(module)
    environment, path = by_file(EXAMPLES[name])
    ran = subprocess.run([sys.executable, "-P", path], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.full
def test_the_pages_pictures_are_drawn(tmp_path, monkeypatch):
    for module in ("matplotlib", "scipy", "torchdiffeq"):
        pytest.importorskip(module)
    monkeypatch.syspath_prepend(ROOT / "docs")
    from pictures import draw

    draw(tmp_path, small=True)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    told = {
        name
        for path in (ROOT / "docs").glob("*.md")
        for name in re.findall(r"!\[[^]]*\]\(([\w-]+\.png)\)", path.read_text(encoding="utf-8"))
    }
    assert drawn <= told
    assert all((ROOT / "docs" / name).exists() for name in drawn)
