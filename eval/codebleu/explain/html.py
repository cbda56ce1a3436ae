"""Renders an explanation as one self-contained HTML page."""

from __future__ import annotations

from html import escape

from eval.codebleu.explain.explanation import Explanation, Missed
from eval.codebleu.explain.text import summary

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --missed: #e5484d44; --added: #f5b70044; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
.bar { background: var(--soft); border-radius: 3px; height: .7rem; width: 10rem; margin-top: .4rem; }
.bar div { background: #30a46c; border-radius: 3px; height: 100%; }
.number { font-variant-numeric: tabular-nums; }
.both { display: grid; gap: 1rem; grid-template-columns: 1fr 1fr; }
@media (max-width: 60rem) { .both { grid-template-columns: 1fr; } }
.both > section { border: 1px solid var(--line); border-radius: 6px; min-width: 0; }
.both h2 { border-bottom: 1px solid var(--line); margin: 0; padding: .4rem .8rem; }
pre { font: 13px/1.5 ui-monospace, monospace; margin: 0; overflow-x: auto; padding: .6rem 0; }
pre .no { color: #888; display: inline-block; padding-right: 1em; text-align: right; user-select: none; width: 3.5em; }
mark { border-radius: 2px; color: inherit; } .missed mark { background: var(--missed); }
.added mark { background: var(--added); }
ul { margin: 0; max-height: 22rem; overflow: auto; padding-left: 1.2rem; } li { margin: .1rem 0; }
code { font: 13px ui-monospace, monospace; white-space: pre-wrap; }
.lists { display: grid; gap: 0 2rem; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); }
"""


def render_html(explanation: Explanation, title: str) -> str:
    """The page, with ``title`` as its heading."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="number">{score:.4f}</td>'
        f'<td><div class="bar"><div style="width:{100 * score:.1f}%"></div></div></td><td>{escape(found)}</td></tr>'
        for name, score, found in summary(explanation)
    )
    renamed = ""
    if explanation.partners:
        pairs = ", ".join(
            f"<code>{escape(a)}</code> is <code>{escape(b)}</code>" for a, b in explanation.partners.items()
        )
        renamed = f"<p>Renamed variables: {pairs}</p>"
    lists = [
        _section("Subtrees missed", [(f"line {one.line}", one.what) for one in explanation.subtrees]),
        _section("Dataflow edges missed", [(f"line {one.line}", one.what) for one in explanation.edges]),
    ]
    for order, grams in explanation.ngrams.items():
        lists.append(_section(f"{order}-grams missed", [(f"{n} times", " ".join(gram)) for gram, n in grams]))
    reference = _code(explanation.reference, explanation.innermost)
    hypothesis = _code(explanation.hypothesis, explanation.added)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(title)}</h1><table>{rows}</table>{renamed}"
        f'<div class="both"><section class="missed"><h2>Reference, with subtrees that the hypothesis lacks</h2>'
        f'{reference}</section><section class="added"><h2>Hypothesis, with subtrees that the reference lacks</h2>'
        f'{hypothesis}</section></div><div class="lists">{"".join(lists)}</div></body></html>\n'
    )


def _section(title: str, lines: list[tuple[str, str]]) -> str:
    items = "".join(f"<li>{escape(place)}: <code>{escape(what)}</code></li>" for place, what in lines)
    return f"<section><h2>{escape(title)}: {len(lines) or 'none'}</h2><ul>{items}</ul></section>"


def _code(text: str, places: list[Missed]) -> str:
    """The text with line numbers and marked places, whose tooltip says what is missed."""
    source = text.encode()
    names: list[str] = [""] * len(source)
    for place in places:
        names[place.start : place.end] = [place.what] * (place.end - place.start)
    lines = []
    start = 0
    for number, line in enumerate(source.split(b"\n"), start=1):
        parts = []
        run = 0
        while run < len(line):
            name, end = names[start + run], run + 1
            while end < len(line) and names[start + end] == name:
                end += 1
            shown = escape(line[run:end].decode("utf-8", "replace"))
            parts.append(f'<mark title="{escape(name)}">{shown}</mark>' if name else shown)
            run = end
        lines.append(f'<span class="no">{number}</span>{"".join(parts)}')
        start += len(line) + 1
    return f"<pre>{chr(10).join(lines)}</pre>"
