from types import SimpleNamespace

import pytest
from fastapi import HTTPException, Request
from hypothesis import given
from hypothesis import strategies as st

from workingpapers.errors import UserError
from workingpapers.site.papers import authors_line, gist
from workingpapers.site.web.render import (
    dated,
    day,
    is_web,
    or_missing,
    problem,
    query,
    short_count,
)


@given(st.text(max_size=400))
def test_first_lines_end_with_a_word(text):
    shown = gist(text, 50)
    assert len(shown) <= 52
    flat = " ".join(text.split()).replace("`", "")
    if "``" not in text:
        assert flat.startswith(shown.removesuffix(" …"))


def test_first_lines_end_before_a_formula_and_keep_quotation_marks():
    assert gist("some words before $a + b + c$ and more", 25) == "some words before …"
    assert gist("it costs $5, or so they say, at most", 25) == "it costs $5, or so they …"
    assert gist("``Such'' a `method`.") == "“Such” a method."


@pytest.mark.parametrize(
    ("value", "shown"),
    [("2026-11-05", "5 November 2026"), (0.0, "1 January 1970"), (None, ""), ("", ""), ("soon", "soon")],
)
def test_days_are_written_out(value, shown):
    assert day(value) == shown


@pytest.mark.parametrize(
    ("names", "shown"), [("", ""), ("a", "a"), ("ab", "a, b"), ("abcd", "a, b and 2 more"), ("<", "<")]
)
def test_many_authors_are_counted(names, shown):
    assert authors_line(tuple(names), 2) == shown


@pytest.mark.parametrize(
    ("venue", "year", "published", "arxiv", "shown"),
    [
        ("ICML", 2017, None, None, "ICML, 2017"),
        ("ICML 2017", 2017, None, None, "ICML 2017"),
        ("CVPR 2014 Workshops", 2014, None, None, "CVPR 2014 Workshops"),
        ("Neural Networks 2025", 2023, None, None, "Neural Networks 2025"),
        ("", 2017, None, "1706.1", "arXiv, 2017"),
        ("", None, None, None, ""),
        ("<b>", None, "2017-06-12", None, '&lt;b&gt; · <time datetime="2017-06-12">12 June 2017</time>'),
        ("", 2017, "2017-06-12", None, '<time datetime="2017-06-12">12 June 2017</time>'),
    ],
)
def test_where_and_when_a_paper_appeared(venue, year, published, arxiv, shown):
    paper = SimpleNamespace(venue=venue, year=year, published=published, arxiv=arxiv)
    assert str(dated(paper)) == shown


def test_counts_are_short():
    assert [short_count(value) for value in (7, 1234, 2_000_000)] == ["7", "1.23k", "2M"]


@pytest.mark.parametrize(
    ("address", "fine"),
    [
        ("https://a.b", True),
        ("http://a.b", True),
        ("javascript:x", False),
        ("", False),
        ("data:x", False),
        ("//a", False),
    ],
)
def test_only_addresses_of_the_web_are_linked(address, fine):
    assert is_web(address) is fine


def test_queries_leave_out_what_is_empty():
    values = {"q": "a&b", "page": 3, "topic": "", "has": ["method", "code"], "year": None}
    assert query(values) == "?q=a%26b&page=3&has=method&has=code"
    assert query(values, page=None, q="", has=[]) == ""


def test_what_is_missing_is_a_404():
    with pytest.raises(HTTPException, match="404: nothing there"), or_missing():
        raise UserError("nothing there")


@pytest.mark.parametrize(("path", "kind"), [("/api/v1/x", "application/json"), ("/x", "text/html; charset=utf-8")])
def test_problems_are_told_in_the_askers_language(path, kind):
    request = Request({"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""})
    answer = problem(request, 404, "No <b>such</b> thing.", {"Retry-After": "1"})
    assert (answer.status_code, answer.headers["content-type"], answer.headers["retry-after"]) == (404, kind, "1")
    assert b"No &lt;b&gt;such" in answer.body or answer.body == b'{"error":"No <b>such</b> thing."}'
