"""The packaged configurations."""

from importlib.resources import files


def preset_text(name: str) -> str:
    """Return the YAML text of a preset."""
    return files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def preset_names() -> list[str]:
    """Return the names of all presets, in order."""
    names = (file.name for file in files(__name__).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))
