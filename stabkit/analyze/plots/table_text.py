"""Write a table of accuracies as Markdown, LaTeX and HTML, to be copied and cited."""

import html
from collections.abc import Iterable, Sequence

from stabkit.printing import one_line

Cell = tuple[str, bool]  # a text, and whether it is the best of its column
ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "β": r"$\beta$", "–": "--",  # noqa: RUF001
}  # fmt: skip


def as_markdown(head: Sequence[str], rows: Sequence[Sequence[Cell]], note: str) -> str:
    """Return a pipe table; the best of a column is in bold."""
    lines = [_pipes(map(_md, head)), _pipes(["---", *["---:"] * (len(head) - 1)])]
    lines += [_pipes(f"**{_md(t)}**" if best else _md(t) for t, best in row) for row in rows]
    return "\n".join([*lines, "", note, ""])


def as_latex(head: Sequence[str], rows: Sequence[Sequence[Cell]], note: str) -> str:
    """Return a tabular with the rules of booktabs; the best of a column is in bold."""
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        _ampersands(map(_tex, head)),
        r"\midrule",
        *(
            _ampersands(rf"\textbf{{{_tex(t)}}}" if best else _tex(t) for t, best in row)
            for row in rows
        ),
        r"\bottomrule",
        r"\end{tabular}",
        f"% {note}",
    ]
    return "\n".join(lines) + "\n"


def as_html(head: Sequence[str], rows: Sequence[Sequence[Cell]], note: str) -> str:
    """Return a table element; the best of a column is in bold."""
    lines = ["<table>", f"<caption>{_html(note)}</caption>", "<thead><tr>"]
    lines += [f'<th scope="col">{_html(name)}</th>' for name in head]
    lines += ["</tr></thead>", "<tbody>"]
    for row in rows:
        cells = [f"<strong>{_html(t)}</strong>" if best else _html(t) for t, best in row]
        lines.append(f'<tr><th scope="row">{cells[0]}</th>' + _cells(cells[1:]) + "</tr>")
    return "\n".join([*lines, "</tbody>", "</table>", ""])


def _cells(texts: Sequence[str]) -> str:
    return "".join(f"<td>{text}</td>" for text in texts)


def _pipes(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _ampersands(texts: Iterable[str]) -> str:
    return " & ".join(texts) + r" \\"


def _md(text: str) -> str:
    escaped = one_line(text).replace("\\", "\\\\")
    for sign in "|*_`<[$":
        escaped = escaped.replace(sign, f"\\{sign}")
    return escaped


def _tex(text: str) -> str:
    return "".join(ESCAPES.get(letter, letter) for letter in one_line(text))


def _html(text: str) -> str:
    return html.escape(one_line(text))
