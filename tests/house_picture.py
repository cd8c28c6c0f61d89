"""Draw the rooms of stabkit/ into docs/architecture.md: python -m tests.house_picture

The picture is a Mermaid diagram, made from the imports as they are. It leaves out every arrow that
other arrows imply, `__main__`, and the small helpers below floor 1, which ROOMS does not name.
"""

from collections.abc import Iterator

from tests.house import FLOORS, INNER_FLOORS, ROOT, Graph, room_graph

PAGE = ROOT / "docs" / "architecture.md"
OPENING, CLOSING = "<!-- picture -->", "<!-- /picture -->"
ROOMS = {  # what a room does; its inner rooms are added from their floors
    "cli": "the verbs: parse, call, print",
    "study": "what a notebook opens: levels, claims",
    "runs": "what `load` returns: tables, findings, figures",
    "sweep": "grid, local pool, SLURM, status",
    "branch": "branches with controls",
    "replay": "kept states, exact replay",
    "evaluate": "full kNN, linear probe, fine-tuning",
    "train": "the loop and its state",
    "analyze": "tables, diagnosis, words",
    "convert": "other tools' logs in, TensorBoard out",
    "integrations": "the Monitor in Lightning, Hugging Face",
    "monitor": "the Monitor",
    "store": "the tables of a run: writer, reader",
    "detect": "events from series",
    "config": "settings, YAML, run id",
    "rundir": "paths, status, log, lock",
}


def with_picture(text: str) -> str:
    """Return a page with the picture between its markers."""
    before, rest = text.split(OPENING)
    after = rest.split(CLOSING)[1]
    picture = "\n".join(["```mermaid", "flowchart TB", *_lines(room_graph()), "```"])
    return f"{before}{OPENING}\n{picture}\n{CLOSING}{after}"


def _lines(graph: Graph) -> Iterator[str]:
    for floor in sorted({FLOORS[room] for room in ROOMS}, reverse=True):
        yield f'  subgraph floor{floor}["floor {floor}"]'
        for room in ROOMS:
            if FLOORS[room] == floor:
                yield f'    {room}["{_label(room)}"]'
        yield "  end"
    for room in ROOMS:
        for target in sorted(_needed(room, graph) & ROOMS.keys()):
            yield f"  {room} --> {target}"


def _label(room: str) -> str:
    """Return the name, what the room does, and its inner rooms, the highest floor first."""
    floors = INNER_FLOORS.get(f"stabkit.{room}", {})
    inner = [
        " · ".join(name for name, at in floors.items() if at == floor)
        for floor in sorted(set(floors.values()), reverse=True)
    ]
    name = f"{room}/" if (ROOT / "stabkit" / room).is_dir() else f"{room}.py"
    return "<br/>".join([f"<b>{name}</b>", ROOMS[room], *(f"<i>{row}</i>" for row in inner)])


def _needed(room: str, graph: Graph) -> set[str]:
    """Return the rooms that a room imports and does not reach through another one."""
    return {
        target
        for target in graph[room]
        if not any(target in _below(other, graph) for other in graph[room] - {target})
    }


def _below(room: str, graph: Graph) -> set[str]:
    return set(graph[room]).union(*(_below(target, graph) for target in graph[room]))


if __name__ == "__main__":
    PAGE.write_text(with_picture(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
