"""Errors that mean a training must not start; whoever catches one has changed nothing."""

from stabkit.config import ConfigError
from stabkit.rundir import ForeignFolderError, RunBusyError


class InexactResumeError(ValueError):
    """Going on would not give the bits of an unbroken run, and this was not allowed."""


class DataRefusedError(ConfigError):
    """The data that the settings name cannot be used; the message is one line."""

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(source, [problem])
        self.args = (f"{source}: {problem}",)


NOT_STARTED = (ConfigError, ForeignFolderError, RunBusyError, InexactResumeError)
