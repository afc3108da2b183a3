"""The error for a host that lacks what steptape relies on."""

from importlib.metadata import PackageNotFoundError, version

from steptape._errors import UnsupportedHostVersion


def unsupported(host: str, missing: object, extra: str) -> UnsupportedHostVersion:
    """The error, naming what is missing, what is installed, and the ``extra`` of steptape that brings what works."""
    try:
        installed = f"{host} {version(host)} is installed"
    except PackageNotFoundError:
        installed = f"{host} is not installed"
    return UnsupportedHostVersion(
        f"steptape relies on something that {host} does not offer here: {missing}. {installed}; "
        f"install a version it is tested with: pip install -U 'steptape[{extra}]'"
    )
