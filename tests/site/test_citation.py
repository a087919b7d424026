import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workingpapers.site.citation import bibtex
from workingpapers.site.papers import Paper


def paper(**changes):
    values = {
        "id": 1, "slug": "some-slug", "card": None, "arxiv": "2302.02334", "doi": None, "title": "The Frozen Features",
        "abstract": "", "summary": "", "authors": ("Ada Lovelace", "Kurt Gödel"), "venue": "ICML", "year": 2023,
        "published": None, "url": "https://arxiv.org/abs/2302.02334", "pdf": "", "code": "", "keywords": (),
        "topics": (), "source": "made", "citations": 0, "stars": 0, "votes": 0, "task": None, "has_method": False,
        "standing": None, "added": 0.0,
    }  # fmt: skip
    return Paper(**values | changes)


def fields(text):
    """Read an entry as BibTeX does: by braces, an escaped one counting like any other."""
    kind, key, rest = re.fullmatch(r"@(\w+)\{([^,\s]*),\n(.*)\}\n", text, re.S).groups()
    found, at = {}, 0
    while match := re.compile(r"\s*(\w+)\s*=\s*\{").match(rest, at):
        depth, end = 1, match.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(rest[end], 0)
            end += 1
        found[match[1]] = rest[match.end() : end - 1]
        assert rest[end] == ","
        at = end + 1
    assert rest[at:].strip() == ""
    return kind, key, found


def test_a_conference_paper():
    assert bibtex(paper()) == (
        "@inproceedings{lovelace2023frozen,\n"
        "  title         = {{The Frozen Features}},\n"
        "  author        = {Ada Lovelace and Kurt Gödel},\n"
        "  year          = {2023},\n"
        "  booktitle     = {ICML},\n"
        "  eprint        = {2302.02334},\n"
        "  archivePrefix = {arXiv},\n"
        "  url           = {https://arxiv.org/abs/2302.02334},\n"
        "}\n"
    )


@pytest.mark.parametrize(
    ("venue", "kind", "field"),
    [
        ("arXiv", "misc", None),
        ("", "misc", None),
        ("NeurIPS 2023", "inproceedings", "booktitle"),
        ("Journal of Machine Learning Research", "article", "journal"),
        ("AI Open 2021", "article", "journal"),
    ],
)
def test_the_kind_follows_the_venue(venue, kind, field):
    found = fields(bibtex(paper(venue=venue)))
    assert found[0] == kind
    assert {"booktitle", "journal"} & found[2].keys() == ({field} if field else set())


@pytest.mark.parametrize(
    ("title", "written"),
    [
        ("Fish & Chips: 100% #1_a", r"Fish \& Chips: 100\% \#1\_a"),
        (r"Already \& escaped", r"Already \& escaped"),
        ("$\\alpha_1$-stable & more", r"$\alpha_1$-stable \& more"),
        ("It costs $5", r"It costs \$5"),
        (r"G\"odel's \'{e}t\'e", r"G\"odel's \'{e}t\'e"),
        (r"\input{/etc/passwd}", r"\textbackslash input{/etc/passwd}"),
        ("An {unclosed brace", "An unclosed brace"),
        ("{BERT} again", "{BERT} again"),
        ("Two\nlines", "Two lines"),
    ],
)
def test_titles_are_safe_for_tex(title, written):
    assert fields(bibtex(paper(title=title)))[2]["title"] == f"{{{written}}}"


def test_names_stay_in_one_piece():
    authors = ("Smith and Sons", "Lovelace, Ada", "A, B, C, D")
    assert fields(bibtex(paper(authors=authors)))[2]["author"] == "{Smith and Sons} and Lovelace, Ada and {A, B, C, D}"


def test_the_key_is_of_words_not_of_mathematics():
    assert "{lovelace2023regression," in bibtex(paper(title="$\\ell_p$-Regression"))
    assert "{lovelace2023cost," in bibtex(paper(title="An $\\widetilde{O}(n)$-Cost \\emph{Algorithm}"))


def test_without_authors_the_slug_is_the_key():
    assert fields(bibtex(paper(authors=())))[1] == "some-slug"


def test_addresses_that_run_something_are_left_out():
    assert "url" not in fields(bibtex(paper(url="javascript:alert(1)")))[2]


@given(
    title=st.text(min_size=1, max_size=60),
    authors=st.lists(st.text(max_size=30), max_size=3),
    venue=st.text(max_size=20),
    doi=st.text(max_size=20),
)
def test_whatever_is_in_it_an_entry_can_be_read(title, authors, venue, doi):
    kind, key, found = fields(bibtex(paper(title=title, authors=tuple(authors), venue=venue, doi=doi)))
    assert kind in ("misc", "inproceedings", "article")
    assert re.fullmatch(r"[A-Za-z0-9:.-]+", key)
    assert "title" in found


@pytest.mark.parametrize(("venue", "year"), [("ICML 2026", "2026"), ("ICML", "2023"), ("arXiv 2021", "2023")])
def test_the_year_is_that_of_the_venue_where_it_says_one(venue, year):
    assert fields(bibtex(paper(venue=venue)))[2]["year"] == year
