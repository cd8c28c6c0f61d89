"""Carry out a parsed request: an error becomes an exit code and a line on stderr."""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from stabkit.cli.request import RequestError, is_speaker
from stabkit.config import ConfigError, suggest
from stabkit.printing import one_line
from stabkit.rundir import ForeignFolderError, LeftOutWarning, LinkedError, RunBusyError
from stabkit.sweep.queue import SlurmError

SAID_IN_ONE_LINE = (RequestError, RunBusyError, LinkedError, FileNotFoundError)
PATIENCE_S = 5.0  # in which torchrun ends the other processes once one has ended
LINES = 50  # at most, about what was left out; more have the same cause


def dispatch(arguments: argparse.Namespace) -> int:
    """Run the verb and return the exit code."""
    try:
        _refuse_unknown(arguments)
        with _left_out_as_lines():
            return int(import_module(module_of(arguments.verb)).act(arguments))
    except BrokenPipeError:
        raise
    except (ConfigError, ForeignFolderError) as error:  # one line for each problem
        return _refused(str(error))
    except SAID_IN_ONE_LINE as error:
        return _refused(one_line(error))
    except (SlurmError, OSError) as error:  # for example a disk that is full or read-only
        print(f"stabkit: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        goes_on = arguments.verb in ("train", "sweep", "branch")
        end = "; the same command goes on from the last checkpoint" if goes_on else ""
        if is_speaker():
            print(f"stabkit: stopped{end}", file=sys.stderr)
        return 1


def _refused(why: str) -> int:
    """Print why the request was wrong, and return the exit code.

    Of several processes the first prints the reason, and torchrun then ends the others. So each
    other process waits before it prints. It gets that far only if the first was not refused, as
    where a file is missing on one machine alone.
    """
    process = ""
    if not is_speaker():
        time.sleep(PATIENCE_S)
        process = f"process {os.environ['RANK']}: "
    print(f"stabkit: {process}{why}", file=sys.stderr)
    return 2


def module_of(verb: str) -> str:
    """Return the module that does a verb; `import` is a word of Python."""
    return f"stabkit.cli.{'import_' if verb == 'import' else verb}"


def _refuse_unknown(arguments: argparse.Namespace) -> None:
    takes_settings = arguments.verb in ("train", "sweep", "branch", "evaluate", "import", "config")
    wrong = [word for word in arguments.overrides if word.startswith("-") or not takes_settings]
    if wrong and takes_settings and "." in wrong[0].partition("=")[0]:
        setting = wrong[0].lstrip("-")
        value = "" if "=" in setting else "=…"
        raise RequestError(
            f"{arguments.verb} takes no {wrong[0]!r}; settings go without dashes: {setting}{value}"
        )
    if wrong:
        hint = suggest(wrong[0].split("=")[0], arguments.options)
        raise RequestError(f"{arguments.verb} takes no {wrong[0]!r}{hint}")


@contextmanager
def _left_out_as_lines() -> Iterator[None]:
    """Print every LeftOutWarning once, as a line; show other warnings as usual."""
    said: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", LeftOutWarning)
        # An error that names the file says this.
        warnings.filterwarnings("ignore", "Image size .* could be decompression bomb")
        show_others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            *rest: Any,
            **more: Any,
        ) -> None:
            if not issubclass(category, LeftOutWarning):
                show_others(message, category, filename, lineno, *rest, **more)
            elif str(message) not in said:
                said.add(str(message))
                if len(said) <= LINES:
                    print(f"stabkit: {message}", file=sys.stderr)

        warnings.showwarning = show
        try:
            yield
        finally:
            if len(said) > LINES:
                print(f"stabkit: ... and {len(said) - LINES:,} more left out", file=sys.stderr)
