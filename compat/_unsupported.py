"""The error for a host that lacks what steptape relies on."""

import re
from importlib.metadata import PackageNotFoundError, requires, version

from steptape._errors import UnsupportedHostVersion


def unsupported(host: str, missing: object, extra: str) -> UnsupportedHostVersion:
    """The error, naming what is missing, what is installed, and the ``extra`` of steptape that brings what works."""
    try:
        installed = f"{host} {version(host)} is installed"
    except PackageNotFoundError:
        installed = f"{host} is not installed"
    return UnsupportedHostVersion(
        f"steptape relies on something that {host} does not offer here: {missing}. {installed}, {_supported(host)} is "
        f"supported; install a version it is tested with: pip install -U 'steptape[{extra}]'"
    )


def _supported(host: str) -> str:
    """The versions of a host that steptape's own requirements name."""
    needs = [need.partition(";")[0].strip() for need in requires("steptape") or ()]
    return next((need for need in needs if re.split(r"[^\w.-]", need)[0] == host), host)
