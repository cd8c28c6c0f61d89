"""The packaged configurations."""

import os

FOLDER = os.path.dirname(__file__)


def preset_path(name: str) -> str:
    return f"{FOLDER}/{name}.yaml"


def preset_names() -> list[str]:
    return sorted(
        file.removesuffix(".yaml") for file in os.listdir(FOLDER) if file.endswith(".yaml")
    )
