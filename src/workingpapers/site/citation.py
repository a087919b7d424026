"""BibTeX of a paper, safe against titles and names with braces, accents or mathematics in them."""

from __future__ import annotations

import re
import unicodedata

from workingpapers.site.papers import YEAR, Paper

_JOURNAL = re.compile(
    r"journal|transactions|letters|review|proceedings of the national|\bopen\b|nature|TMLR|JMLR|PAMI", re.I
)
_ACCENT = re.compile(r"\\(?=[&%#_$]|[\"'`^~=.]\{?[A-Za-z\\]|[cuvHkrbd]\{[A-Za-z]\})")
_ACTS = re.compile(r"[{}$\\&%#_]")
_MATHS = re.compile(r"\$[^$]*\$|\\[A-Za-z]+")
_STOP = frozenset("a an and are as at by can do does for from how in is it of on or the to what when why with".split())


def bibtex(paper: Paper) -> str:
    """Return a paper's BibTeX entry, ready to paste."""
    preprint = not paper.venue or "arxiv" in paper.venue.lower()
    journal = not preprint and _JOURNAL.search(paper.venue)
    said = YEAR.search(paper.venue)  # in "ICML 2026", whatever year the preprint is of
    kind = "misc" if preprint else "article" if journal else "inproceedings"
    fields = {
        "title": f"{{{_tex(paper.title)}}}",  # a second pair of braces keeps the capitals
        "author": " and ".join(_name(author) for author in paper.authors),
        "year": said[0] if said and not preprint else str(paper.year or ""),
        "" if preprint else "journal" if journal else "booktitle": _tex(paper.venue),
        "eprint": paper.arxiv or "",
        "archivePrefix": "arXiv" if paper.arxiv else "",
        "doi": _plain(paper.doi or ""),
        "url": _plain(paper.url) if paper.url.startswith(("https://", "http://")) else "",
    }
    lines = [f"  {name:<13} = {{{value}}}," for name, value in fields.items() if name and value]
    return "\n".join([f"@{kind}{{{_key(paper)},", *lines, "}\n"])


def _key(paper: Paper) -> str:
    """Return "lovelace2023frozen": family name of the first author, year, first telling word of the title."""
    family = _ascii((paper.authors[0].partition(",")[0].split() or [""])[-1]) if paper.authors else ""
    title = _MATHS.sub(" ", paper.title)
    words = [_ascii(word) for word in re.findall(r"\w+", title)]
    word = next((word for word in words if word and word not in _STOP), "")
    return f"{family}{paper.year or ''}{word}" if family else re.sub(r"[^A-Za-z0-9:.-]", "", paper.slug)


def _ascii(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", text.lower()))


def _name(author: str) -> str:
    """Return a name in one piece where BibTeX would take it for two."""
    name = _tex(author)
    return f"{{{name}}}" if re.search(r"\band\b", name, re.I) or name.count(",") > 2 else name


def _tex(text: str) -> str:
    """Return text for a field: mathematics stays, what TeX would act on is escaped, braces are balanced."""
    flat = " ".join(text.split())
    if not _ACTS.search(flat):
        return flat
    flat = flat if _is_balanced(flat) else flat.replace("{", "").replace("}", "")
    parts = flat.split("$")
    if len(parts) % 2 == 0:  # an odd dollar is a dollar
        return _escaped(flat.replace("$", r"\$"))
    return "$".join(part if i % 2 else _escaped(part) for i, part in enumerate(parts))


def _escaped(text: str) -> str:
    kept = "".join(
        part if i == 0 else ("\\" if _ACCENT.match("\\" + part) else r"\textbackslash ") + part
        for i, part in enumerate(text.split("\\"))
    )
    return re.sub(r"(?<!\\)([&%#_])", r"\\\1", kept)


def _is_balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return False
    return depth == 0


def _plain(text: str) -> str:
    """Return an address without what would end a field."""
    return re.sub(r"[{}\\\s]", "", text)
