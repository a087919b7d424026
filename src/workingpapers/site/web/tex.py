r"""LaTeX in titles and abstracts as HTML: formulas between dollars as MathML, quotation marks and emphasis as such.

Sources give titles and abstracts as their authors typed them, for TeX. `math_core` turns formulas into MathML, which
browsers draw themselves. What it doesn't know stays as it was typed, and so does a whole text whose dollars may be
money: an odd number of them, words between two of them, a price behind one. Nothing that comes from outside is believed
to be markup, nor what `math_core` makes of it: every tag and attribute is written anew from a short list, and text is
escaped.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape
from math_core import LatexToMathML

_LONGEST = 300  # characters of a formula: a paper's longest, and far from what would exhaust the stack
_EXPANSIONS = 20  # of commands that stand for others, some of them the converter's own
_DEEPEST = 24  # elements within each other
_WIDE = 10  # characters from which a formula may scroll: lines are broken beside formulas, never within
_CACHED = 2048  # texts, of a few kilobytes each

_CONTAINERS = frozenset(
    "math mrow mfrac msqrt mroot msub msup msubsup munder mover munderover mpadded mphantom mtable mtr mtd".split()
)
_LEAVES = frozenset("mi mn mo ms mtext mspace".split())
_WORDS = frozenset("b i em code".split())  # within mtext alone
_UNWRAPPED = "span"  # brings a typeface of its own, which the page does not have
_ATTRIBUTES = frozenset(
    "accent accentunder displaystyle fence form linethickness lspace mathvariant maxsize minsize movablelimits rspace "
    "scriptlevel separator stretchy symmetric width".split()
)
_DROPPED = frozenset(("class", "style"))
_TAG = re.compile(r'<(/?)([a-z]+)((?: [a-z]+="[^"<>&]*")*)(/?)>')
_ATTRIBUTE = re.compile(r'([a-z]+)="([^"]*)"')
_VALUE = re.compile(r"-?(?:[0-3](?:\.\d+)?|\.\d+)(?:em)?|[a-z]{1,10}")  # no length that leaves the line

_COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)\*?(?:\s*\{[^{}]*\})?", re.DOTALL)
_PROSE = re.compile(r"[A-Za-z]{2,}[\s,;:.]+[A-Za-z]{2,}")
_SURE = re.compile(r"[\\^_]")
_STYLED = r"\\(?P<command>emph|textit|textbf|texttt|textsc|textrm|text)\{(?P<words>[^{}$\\]{1,200})\}"
_STYLED_ALONE = re.compile(_STYLED)
_TEXT = re.compile(
    rf"``(?P<quoted>[^`'$]{{1,200}})''|{_STYLED}|\{{\\(?P<switch>em|it|bf|tt|sc)\s+(?P<run>[^{{}}$\\]{{1,200}})\}}"
    r"|\\(?P<escaped>[%&_#])"
)
_ELEMENTS = {"em": ("emph", "textit", "em", "it"), "b": ("textbf", "bf"), "code": ("texttt", "tt")}
_ELEMENT_OF = {command: element for element, commands in _ELEMENTS.items() for command in commands}
_MARKS = re.compile(r"</?mark>")
_ANY_TAG = re.compile(r"<[^>]*>")


class _Piece(NamedTuple):
    """A part of a text, from start to stop, and what is shown for it."""

    start: int
    stop: int
    shown: Markup


def typeset(text: str) -> Markup:
    """Return a text as HTML: formulas as MathML, LaTeX's quotation marks and emphasis as such, all else escaped."""
    return _whole(text) if _may_be_tex(text) else escape(text)


def typeset_marked(marked: Markup) -> Markup:
    """Return a text in which `<mark>` marks what was looked for, typeset; a formula with a mark in it is marked whole.

    Args:
        marked: escaped, without other elements.
    """
    if not _may_be_tex(marked):
        return marked
    text, spans = "", []
    for number, part in enumerate(_MARKS.split(marked)):  # every second part is within marks
        if number % 2:
            spans.append((len(text), len(text) + len(html.unescape(part))))
        text += html.unescape(part)
    return _joined(text, spans)


def _may_be_tex(text: str) -> bool:
    return "$" in text or "\\" in text or "``" in text


@functools.lru_cache(_CACHED)
def _whole(text: str) -> Markup:
    return _joined(text, ())


def _joined(text: str, spans: Sequence[tuple[int, int]]) -> Markup:
    """Return a text's pieces and what is between them, with marks on its spans, which are in order."""
    parts: list[Markup] = []
    end = 0
    for start, stop, shown in (*_pieces(text), _Piece(len(text), len(text), Markup())):
        parts += _marked(text, spans, end, start)
        is_marked = any(first < stop and start < last for first, last in spans)
        parts.append(_mark(shown) if is_marked else shown)
        end = stop
    return Markup("").join(parts)


def _marked(text: str, spans: Sequence[tuple[int, int]], start: int, stop: int) -> Iterator[Markup]:
    """Yield the text from start to stop with marks on what is in spans."""
    for first, last in spans:
        first, last = max(first, start), min(last, stop)
        if first < last:
            yield escape(text[start:first])
            yield _mark(escape(text[first:last]))
            start = last
    yield escape(text[start:stop])


def _mark(shown: Markup) -> Markup:
    return Markup(f"<mark>{shown}</mark>")


@functools.lru_cache(_CACHED)
def _pieces(text: str) -> tuple[_Piece, ...]:
    """Return what of a text is shown in another way than it was typed, in order."""
    parts = text.split("$")
    has_formulas = len(parts) > 1 and _has_formulas(text, parts)
    if not has_formulas:
        return tuple(_styled(text, 0))
    found, start = [], 0
    for number, part in enumerate(parts):
        if number % 2:
            shown = _formula(part)
            if shown is not None:
                found.append(_Piece(start - 1, start + len(part) + 1, shown))
        else:
            found += _styled(part, start)
        start += len(part) + 1
    return tuple(found)


def _has_formulas(text: str, parts: Sequence[str]) -> bool:
    """Return whether a text's dollars are surely around formulas."""
    if len(parts) % 2 == 0 or r"\$" in text:
        return False
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    is_price = any(inside[:1].isdigit() and behind[:1].isdigit() for inside, behind in pairs)  # "$5-$10"
    return not is_price and all(map(_is_formula, parts[1::2]))


def _is_formula(inside: str) -> bool:
    flat = inside.strip()
    if not flat or len(inside) > _LONGEST or (flat != inside and not _SURE.search(inside)):
        return False
    return not _PROSE.search(_COMMAND.sub("\\\\", inside))


def _styled(text: str, offset: int) -> Iterator[_Piece]:
    """Yield quotation marks, emphasis and escaped characters outside formulas."""
    for match in _TEXT.finditer(text):
        yield _Piece(offset + match.start(), offset + match.end(), _styled_text(match))


def _styled_text(match: re.Match[str]) -> Markup:
    groups = {name: value for name, value in match.groupdict().items() if value is not None}
    if "quoted" in groups:
        return escape(f"“{groups['quoted']}”")
    if "escaped" in groups:
        return escape(groups["escaped"])
    element = _ELEMENT_OF.get(groups.get("command") or groups["switch"])
    words = html.escape(groups.get("words") or groups["run"])
    return Markup(f"<{element}>{words}</{element}>" if element else words)


def _formula(latex: str) -> Markup | None:
    """Return a formula's HTML; None where it can't be read."""
    if words := _STYLED_ALONE.fullmatch(latex.strip()):
        return _styled_text(words)
    try:
        made = _converter().convert_with_local_state(latex, displaystyle=False)
    except Exception:  # whatever it is, the formula is shown as it was typed
        return None
    clean = _clean(made)
    if clean is None:
        return None
    is_wide = len(_ANY_TAG.sub("", clean)) > _WIDE
    return Markup(f'<span class="formula">{clean}</span>' if is_wide else clean)


@functools.cache
def _converter() -> LatexToMathML:
    # \widetilde and its like are drawn by each browser a little differently, which is better than not at all.
    return LatexToMathML(fancy_error=False, allow_unreliable_rendering=True, max_expansions=_EXPANSIONS)


def _clean(mathml: str) -> str | None:
    """Return MathML written anew of the elements and attributes known here; None for any other."""
    parts: list[str] = []
    open_: list[str] = []
    end = 0
    for match in _ANY_TAG.finditer(mathml):
        if between := mathml[end : match.start()]:
            parts.append(html.escape(html.unescape(between)))
        end = match.end()
        tag = _TAG.fullmatch(match[0])
        if tag is None:
            return None
        closing, name, attributes, empty = tag.groups()
        if closing:
            if not open_ or open_.pop() != name:
                return None
        else:
            kept = _kept(attributes)
            if kept is None or not _fits(name, open_[-1] if open_ else "") or len(open_) >= _DEEPEST:
                return None
            if name != _UNWRAPPED:
                parts.append(f"<{name}{kept}>")
            if not empty:
                open_.append(name)
        if (closing or empty) and name != _UNWRAPPED:
            parts.append(f"</{name}>")
    return None if open_ or end != len(mathml) else "".join(parts)


@functools.lru_cache(_CACHED)
def _kept(attributes: str) -> str | None:
    """Return the attributes that matter, as written in a tag; None if one is unknown, or its value is."""
    kept = [pair for pair in _ATTRIBUTE.findall(attributes) if pair[0] not in _DROPPED]
    known = all(key in _ATTRIBUTES and _VALUE.fullmatch(value) for key, value in kept)
    return "".join(f' {key}="{value}"' for key, value in kept) if known else None


def _fits(name: str, inside: str) -> bool:
    """Return whether an element may stand in another: HTML ends a formula where a word stands among its containers."""
    if name in _WORDS or name == _UNWRAPPED:
        return inside == "mtext" or inside in _WORDS or inside == _UNWRAPPED
    return (name == "math") == (inside == "") and name in _CONTAINERS | _LEAVES and inside not in _LEAVES | _WORDS
