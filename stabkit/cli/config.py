"""`stabkit config`: print every setting, with what it means and what differs from the defaults."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stabkit.cli.names import YAML, is_sweep, is_sweep_file, run_of, sweep_file
from stabkit.cli.next_step import say_next
from stabkit.cli.request import RequestError
from stabkit.config import (
    RunConfig,
    load_config,
    preset_names,
    read_config,
    suggest,
)
from stabkit.config.described import Line, described
from stabkit.printing import bare_stdout, one_line
from stabkit.rundir import RunDir, is_of_monitor
from stabkit.sweep.grid import load_sweep

Varied = Mapping[str, Sequence[Any]]


def act(arguments: argparse.Namespace) -> int:
    """Print the settings of a preset, a file, a sweep's first run or a run, as commented YAML."""
    config, varied, about, following = _read(arguments)
    head = [
        Line(f"# {one_line(about)}"),
        Line("# A line with a default in its comment differs from it."),
    ]
    _show([*head, *described(config, varied)])
    say_next(*following, on_terminals=True)
    return 0


def _read(arguments: argparse.Namespace) -> tuple[RunConfig, Varied, str, list[str]]:
    """Return the settings, the values that vary, what they are, and the command that uses them."""
    source, words, scale = arguments.source, arguments.overrides, arguments.scale
    if source in preset_names() or (source.endswith(YAML) and not is_sweep_file(Path(source))):
        if scale is not None:
            raise RequestError(f"--scale {scale}: {source} is no sweep")
        config = load_config(source, words)
        return config, {}, f"the settings of {source}", ["stabkit", "train", source, *words]
    if source.endswith(YAML) or is_sweep(source):
        sweep = load_sweep(sweep_file(source), scale, words)
        runs = [run.settings for run in sweep.runs]
        varied = {key: list(dict.fromkeys(run[key] for run in runs)) for key in runs[0]}
        varied = {key: values for key, values in varied.items() if len(values) > 1}
        which = "the run" if len(runs) == 1 else f"the first of the {len(runs):,} runs"
        about = f"the settings of {which} of {source}"
        at = ["--scale", scale] if scale else []
        return sweep.runs[0].config, varied, about, ["stabkit", "sweep", source, *at, *words]
    if words or scale is not None:
        word = (*words, "--scale")[0]
        raise RequestError(f"{word}: the settings of a run cannot be changed; name a preset")
    try:
        rundir = RunDir(run_of(source))
    except RequestError as error:
        near = suggest(source, preset_names())
        if not near.startswith("; did you mean"):
            near = f"; presets: {', '.join(preset_names())}"
        raise RequestError(f"{error}{near}") from None
    if not rundir.config_file.is_file():
        raise RequestError(f"{rundir.path}: no run of `stabkit train`, it has no config.yaml")
    if is_of_monitor(rundir.config_file):
        raise RequestError(
            f"{rundir.config_file}: holds the settings of another program, as they were given to a "
            "Monitor; read it as it is"
        )
    config = read_config(rundir.config_file)
    return config, {}, f"the settings of {rundir.path}", ["stabkit", "analyze", str(rundir.path)]


def _show(lines: Sequence[Line]) -> None:
    """Print the lines; on a terminal comments are dim and what differs is bold."""
    if not sys.stdout.isatty():
        print("\n".join(map(str, lines)))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=bare_stdout(), soft_wrap=True)
    for line in lines:
        shown = str(line)
        text = Text(one_line(shown), "bold" if line.differs else "")
        begin = shown.find("# ") if line.text.lstrip().startswith("#") else len(line.text)
        text.stylize("not bold dim", max(begin, 0))
        console.print(text)
