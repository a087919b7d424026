"""Queries are read as they are meant, and nothing that is typed is an error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workingpapers.errors import UserError
from workingpapers.site.search.query import narrowed, parse, plain, read_years, split


def words(terms):
    return [term.phrases for term in terms]


def test_every_operator():
    query = parse('sparse attention "long context" -vision author:Vaswani venue:"neur ips" year:2020..2023')
    assert words(query.words) == [(("sparse",),), (("attention",),)]
    assert [(term.phrases, term.place) for term in query.needed] == [
        ((("long", "context"),), None),
        ((("vaswani",),), "authors"),
        ((("neur",),), "venue"),
        ((("ips",),), "venue"),
    ]
    assert words(query.excluded) == [(("vision",),)]
    assert query.years == (2020, 2023)
    assert query.text == "sparse attention long context"


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("2020", (2020, 2020)),
        ("2020..2023", (2020, 2023)),
        ("2020..", (2020, None)),
        ("..2023", (None, 2023)),
        ("2023..2020", (2020, 2023)),
        (">=2021", (2021, None)),
        (">2021", (2022, None)),
        ("<=2021", (None, 2021)),
        ("<2021", (None, 2020)),
    ],
)
def test_years(text, years):
    assert read_years(text) == years
    assert parse(f"x year:{text}").years == years


@pytest.mark.parametrize("text", ["soon", "", "..", "20", "2020-2021", "2020..2021..2022", ">=", "20202021"])
def test_years_that_are_none_are_refused_by_the_filter_and_words_in_the_box(text):
    with pytest.raises(UserError, match=r"2020\.\.2023"):
        read_years(text)
    assert parse(f"year:{text}").years == (None, None)


def test_years_narrow():
    assert parse("year:2020.. year:..2023 year:<2022").years == (2020, 2021)
    assert narrowed((None, 2020), (2021, None)) == (2021, 2020)  # nothing is within both


def test_compounds_are_looked_for_apart_and_as_one():
    assert words(parse("pre-training").words) == [(("pre", "training"), ("pretraining",))]


def test_a_minus_within_a_word_excludes_nothing():
    query = parse("self-attention - x")
    assert query.excluded == ()


def test_an_open_quote_is_words_and_accents_are_folded():
    assert words(parse('"naïve Bayes').words) == [(("naive",),), (("bayes",),)]


def test_unknown_operators_are_words():
    assert words(parse("arxiv:2106.07139 C++").words) == [(("arxiv",),), (("2106",),), (("07139",),), (("c",),)]


@given(st.text(max_size=300))
def test_words_hold_letters_and_digits_alone(text):
    query = parse(text)
    for term in (*query.words, *query.needed, *query.excluded):
        for phrase in term.phrases:
            assert phrase
            assert all(word and split(word) == [word] for word in phrase)


def test_a_query_of_any_length_has_few_terms():
    assert len(parse("ab " * 100_000).words) == 1
    assert len(parse(" ".join(f"w{n}" for n in range(10_000))).words) <= 64


def test_what_is_said_twice_counts_once():
    query = parse('deep deep author:li author:li "a phrase" "a phrase" -x -x')
    assert [len(terms) for terms in (query.words, query.needed, query.excluded)] == [1, 2, 1]


@pytest.mark.parametrize(
    ("typed", "kept"),
    [("  a \n b\t", "a b"), ("a\0b\x1b[31m", "a b [31m"), ("\u202e\u200b", ""), ("深度 שלום", "深度 שלום")],
)
def test_a_query_is_kept_as_a_line_that_can_be_seen(typed, kept):
    assert plain(typed) == kept
