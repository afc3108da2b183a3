"""The errors steptape raises, one class per way out, and its warnings."""


class SteptapeError(Exception):
    """Base class of every error raised by steptape."""

    # Whether the call has changed what cannot be set back, so that the host must not be tried in its place.
    _is_final = False


class OptionError(SteptapeError, ValueError):
    """An argument or option of the call is wrong: correct the call."""


class UnsupportedError(SteptapeError, NotImplementedError):
    """The call is valid for the host but steptape cannot differentiate it exactly: use what the text names."""


class GradientError(SteptapeError, RuntimeError):
    """A backward pass would have returned a wrong gradient: nothing was returned."""


class HostChangedError(SteptapeError, RuntimeError):
    """Someone else replaced what ``install()`` replaces in a host library: undo that first."""


class UnsupportedHostVersion(SteptapeError, ImportError):
    """A host library is missing, or its installed version lacks what steptape relies on: install another version."""


class SteptapeWarning(UserWarning):
    """Something the call asks for has no effect here; the gradient is right."""


def final(error: SteptapeError) -> SteptapeError:
    """An error of a call that has changed what cannot be set back."""
    error._is_final = True
    return error


def is_final(error: SteptapeError) -> bool:
    """Whether it is one."""
    return error._is_final
