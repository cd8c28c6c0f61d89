"""Put what a command prints between two markers of a page."""

from pathlib import Path


def filled(text: str, name: str, content: str, file: Path) -> str:
    """Return the text of a page with `content` between its markers `name`.

    Raises ValueError, with the name of the file, unless each marker is there once and in order.
    """
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    for marker in (opening, closing):
        if text.count(marker) != 1:
            raise ValueError(f"{file}: {marker} occurs {text.count(marker)} times instead of once")
    before, rest = text.split(opening)
    if closing not in rest:
        raise ValueError(f"{file}: {closing} comes before {opening}")
    return f"{before}{opening}\n{content}\n{closing}{rest.split(closing)[1]}"


def fill(file: Path, name: str, content: str) -> None:
    """Write `content` between the markers `name` of a file."""
    file.write_text(filled(file.read_text(encoding="utf-8"), name, content, file), encoding="utf-8")
