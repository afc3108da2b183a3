"""What is dear to make is made once in a session of tests, and not once a worker."""

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def once(tmp_path_factory: Any, name: str, make: Callable[[Path], Any]) -> Any:
    """What ``make(folder)`` gives, by the first worker that asks for it; the others wait and read what it kept."""
    base = tmp_path_factory.getbasetemp()
    # The folders of all workers of a session lie side by side in one of its own.
    folder = (base.parent if base.name.startswith("popen-gw") else base) / f"once-{name}"
    kept, failed = folder / "kept.pickle", folder / "failed.txt"
    try:
        folder.mkdir()
    except FileExistsError:
        while not kept.exists():
            assert not failed.exists(), failed.read_text(encoding="utf-8")
            time.sleep(0.1)
        return pickle.loads(kept.read_bytes())
    try:
        made = make(folder)
    except BaseException as error:
        failed.write_text(f"another worker could not make {name}: {error!r}", encoding="utf-8")
        raise
    (folder / "new").write_bytes(pickle.dumps(made))
    (folder / "new").rename(kept)
    return made
