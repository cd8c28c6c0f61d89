"""Read YAML and overrides into a checked configuration; compute its run id.

Errors name the file, the key, the value and what would be right.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from stabkit.config.allowed import allowed_at
from stabkit.config.effect import without_effect
from stabkit.config.run import RunConfig
from stabkit.config.section import MANY, Section
from stabkit.config.shares import RIVALS
from stabkit.presets import preset_names, preset_text
from stabkit.yamlio import dump_yaml, parse_yaml, read_yaml

Model = TypeVar("Model", bound=Section)
NEAR = 3  # settings that an error names
LISTED = 40  # words that an error lists
SAYS_MORE = ("device", "finite_number")  # errors that say more than what the setting may be


class ConfigError(ValueError):
    """A request that cannot be run; `problems` holds every reason, a line each."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = list(problems)
        super().__init__(
            "\n".join([f"{source}:", *(f"  - {problem}" for problem in self.problems)])
        )


def run_id(config: RunConfig) -> str:
    """Return eight hex digits that identify every setting that can change a result, and no other.

    Settings at their default are left out, so that a setting added later does not rename older
    runs. A default, once released, therefore never changes.
    """
    decisive = config.model_dump(mode="json", exclude={"runtime"}, exclude_defaults=True)
    canonical = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def read_base(base: str, folder: Path = Path()) -> dict[str, Any]:
    """Return the settings of a packaged preset, or of a YAML file relative to `folder`."""
    if "/" not in base and not base.endswith((".yaml", ".yml")):
        if base not in preset_names():
            raise ConfigError(f"base {base}", [f"no such preset{suggest(base, preset_names())}"])
        return dict(parse_yaml(preset_text(base)))
    return read_mapping(folder / base)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings. Raises ConfigError."""
    try:
        content = read_yaml(path)
    except OSError as error:
        raise ConfigError(str(path), [error.strerror or str(error)]) from None
    except ValueError as error:
        raise ConfigError(str(path), [str(error)]) from None
    if not isinstance(content, dict):
        raise ConfigError(str(path), [f"holds {type(content).__name__}, not a mapping of settings"])
    return content


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Return `["optim.lr=1e-3"]` as `{"optim.lr": 0.001}`; values are YAML. Raises ConfigError."""
    settings: dict[str, Any] = {}
    problems = []
    for pair in pairs:
        key, sep, text = pair.partition("=")
        if not (key and sep):
            problems.append(f"{pair!r} is not of the form key=value, e.g. optim.lr=1e-3")
            continue
        try:
            settings[key] = parse_yaml(text)
        except ValueError as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise ConfigError("command line", problems)
    return settings


def with_settings(base: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested copy of `base` with dotted `settings` set, e.g. `{"optim.lr": 1e-3}`.

    A setting replaces the other form of itself in `base`, such as `optim.warmup_steps` replaces
    `optim.warmup_share`.
    """
    result = {k: with_settings(v, {}) if isinstance(v, Mapping) else v for k, v in base.items()}
    for dotted, value in settings.items():
        *sections, leaf = dotted.split(".")
        node = result
        for section in sections:
            child = node.get(section)
            node[section] = child if isinstance(child, dict) else {}
            node = node[section]
        node[leaf] = value
        if (rival := RIVALS.get(dotted)) and rival not in settings:
            node.pop(rival.rpartition(".")[2], None)
    return result


def validate(model: type[Model], content: Mapping[str, Any], source: str) -> Model:
    """Check `content`. Raises ConfigError with all problems, each naming key, value and remedy."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        # A list with a bad entry is reported once more as a list that is then too short.
        found = error.errors()
        of_entries = {e["loc"][:-1] for e in found}
        told = [e for e in found if e["type"] != "too_short" or e["loc"] not in of_entries]
        problems = [_explain(e, model) for e in told]
        raise ConfigError(source, problems) from None


def load_config(source: str, overrides: str | Sequence[str] = ()) -> RunConfig:
    """Return the configuration of a preset or a file, with `key=value` overrides, one or several.

    Raises ConfigError.
    """
    overrides = [overrides] if isinstance(overrides, str) else overrides
    content = with_settings(read_base(source), parse_overrides(overrides))
    config = validate(RunConfig, content, source)
    if problems := without_effect(config):
        raise ConfigError(source, problems)
    return config


def read_config(path: Path) -> RunConfig:
    """Return the configuration that a run was made with, from its folder. Raises ConfigError."""
    if path.exists() and not path.is_file():  # reading a pipe would block for ever
        raise ConfigError(str(path), ["not a file"])
    return validate(RunConfig, read_mapping(path), str(path))


def missing_data(config: RunConfig) -> str | None:
    """Return what is wrong with the place of the data, without reading any of it."""
    data = config.data
    if problem := unusable_path(config):
        return problem
    if data.path is None or data.download or Path(data.path).expanduser().is_dir():
        return None
    return f"data.path = {data.path!r}: no such folder; {data.name} data is read from there"


def unusable_path(config: RunConfig) -> str | None:
    """Return what is wrong with a path in the settings: a NUL byte, or an unknown user's home."""
    for key, text in (("data.path", config.data.path), ("runtime.cache", config.runtime.cache)):
        try:
            if text is not None and b"\0" in os.fsencode(Path(text).expanduser()):
                return f"{key} = {text!r}: not a path, it holds a NUL byte"
        except RuntimeError:
            return f"{key} = {text!r}: no such user; write the folder in full"
        except ValueError as error:
            return f"{key} = {text!r}: not a path ({error})"
    return None


def save_config(config: RunConfig) -> str:
    """Return the resolved, complete configuration as YAML."""
    return dump_yaml(settings_to_save(config))


def settings_to_save(config: RunConfig) -> dict[str, Any]:
    """Return all settings as plain data; `branch` only of a branch."""
    content = config.model_dump(mode="json")
    if config.branch is None:
        del content["branch"]
    return content


def suggest(word: str, known: Sequence[str]) -> str:
    """Return the end of an error message: the known words nearest to `word`, or all of them.

    Dotted settings resemble each other by the names of their sections, so up to `NEAR` are named
    unless one is very near. More than `LISTED` known words are the settings of a run, and the
    command that prints them is named instead.
    """
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.85 if "." in word else 0.6)
    if near := near or difflib.get_close_matches(word, known, n=NEAR):
        return f"; did you mean {' or '.join(map(repr, near))}?"
    many = len(known) > LISTED
    return "; `stabkit config tiny` prints all" if many else f"; known: {', '.join(known)}"


def keys_of(model: type[Section], prefix: str = "") -> list[str]:
    """List every dotted key of a model that a request may set, in order: none of `branch`."""
    keys = []
    for name, field in model.model_fields.items():
        if model is RunConfig and name == "branch":
            continue
        # A section, or `Section | None`.
        kinds = (field.annotation, *get_args(field.annotation))
        sections = [k for k in kinds if isinstance(k, type) and issubclass(k, Section)]
        keys += keys_of(sections[0], f"{prefix}{name}.") if sections else [prefix + name]
    return keys


def _explain(error: Any, model: type[Section]) -> str:
    key, given, kind = ".".join(map(str, error["loc"])), error["input"], error["type"]
    if kind == "extra_forbidden":
        known = keys_of(model)
        if isinstance(given, dict) and given and not difflib.get_close_matches(key, known):
            key += f".{next(iter(given))}"  # an unknown section: one of its settings says more
        return f"{key}: no such setting{suggest(key, known)}"
    if kind == "value_error":
        reason = str(error["ctx"]["error"])
        return f"{key}: {reason}" if key else reason
    right = allowed_at(model, error["loc"])
    if kind == "missing":
        return f"{key}: missing" + (f"; should be {right}" if right else "")
    if right is None or kind in SAYS_MORE:
        right = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    elif kind == "less_than_equal" and error["ctx"]["le"] >= MANY:
        right = f"at most {error['ctx']['le']:,}"
    elif kind == "number" and isinstance(given, str):
        right += ", written as 90 or 1e3"
    shown = json.dumps(given) if given is None or isinstance(given, bool) else repr(given)
    return f"{key} = {shown}: should be {right}"
