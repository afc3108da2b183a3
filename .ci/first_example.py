"""Run the README's first example of a half, `torch` or `jax`, where nothing but that half's extra is installed."""

import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path

HALVES = {"torch": "jax", "jax": "torch"}
UNWANTED = ("matplotlib", "rich", "tabulate", "torchsde")

half = sys.argv[1]
for name in (HALVES[half], *UNWANTED):
    assert importlib.util.find_spec(name) is None, f"{name} was installed with steptape[{half}]"
readme = Path(__file__).resolve().parents[1] / "README.md"
examples = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
exec(next(example for example in examples if f"from steptape.{half} import" in example))
theirs = [path for path, module in sys.modules.items() if path.partition(".")[0] == HALVES[half]]
assert not theirs, theirs
print(f"steptape[{half}] {importlib.metadata.version('steptape')} runs alone")
