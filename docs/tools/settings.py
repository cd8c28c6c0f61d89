"""Write docs/settings.md, the reference of every setting: python docs/tools/settings.py"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from stabkit.config import RunConfig, keys_of
from stabkit.config.described import allowed, in_yaml
from stabkit.config.section import Section

PAGE = Path(__file__).parents[1] / "settings.md"
HEAD = """# Settings

Every setting of a run. Write one as `key=value` after `stabkit train` or `stabkit sweep`, or as a
key of a sweep's `set` or `grid`. `stabkit config tiny` prints the settings of a preset with the
same comments; `stabkit config runs/train/RUN` those of a run. A wrong key or value is refused
before anything starts.

Settings that can change a result are part of the run's id; those of `runtime` are not. This page is
written by `python docs/tools/settings.py` from the models in `stabkit/config/`.
"""


def page() -> str:
    """Return the page as Markdown."""
    keys = keys_of(RunConfig)
    single = [key for key in keys if "." not in key]
    parts = [HEAD, *table(RunConfig, single, "")]
    for name in dict.fromkeys(key.partition(".")[0] for key in keys if "." in key):
        section = RunConfig.model_fields[name].annotation
        assert isinstance(section, type)
        assert issubclass(section, Section)
        inside = [key.partition(".")[2] for key in keys if key.startswith(f"{name}.")]
        parts += [f"\n## {name}\n", prose(section) + "\n", *table(section, inside, f"{name}.")]
    return "\n".join(parts) + "\n"


def prose(section: type[Section]) -> str:
    """Return a model's docstring as Markdown: list items one below the other, no blank between."""
    return re.sub(r":\n(?=- )", ":\n\n", inspect.cleandoc(section.__doc__ or ""))


def table(section: type[Section], keys: list[str], prefix: str) -> Iterator[str]:
    """Yield the lines of a table: each key, its default, and what it may be."""
    yield "| setting | default | may be |"
    yield "| --- | --- | --- |"
    for key in keys:
        field = section.model_fields[key]
        default = "none: required" if field.is_required() else f"`{in_yaml(field.default)}`"
        yield f"| `{prefix}{key}` | {default} | {allowed(field.annotation, field.metadata)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
