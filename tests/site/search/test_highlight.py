"""Marks stand where they should, and what is shown is safe and whole."""

import re
from html import escape

from hypothesis import given
from hypothesis import strategies as st

from workingpapers.site.search.highlight import SNIPPET, Marker
from workingpapers.site.search.query import parse


def marker(text):
    query = parse(text)
    return Marker([*query.words, *query.needed])


def test_other_forms_of_a_word_are_marked():
    shown = marker("learn networks").marked("Learning a network; learned, unlearned")
    assert shown == "<mark>Learning</mark> a <mark>network</mark>; <mark>learned</mark>, unlearned"


def test_a_phrase_is_marked_as_one_and_its_words_alone_are_not():
    assert marker('"long context"').marked("long text, long-context") == "long text, <mark>long-context</mark>"


def test_markup_in_texts_is_escaped():
    assert marker("b").marked("<b>&") == "&lt;<mark>b</mark>&gt;&amp;"


def test_accents_make_no_difference():
    assert marker("naive").marked("Naïve") == "<mark>Naïve</mark>"


def test_words_that_say_nothing_are_not_marked():
    assert marker("the graph").marked("the graph") == "the <mark>graph</mark>"


@given(st.text(alphabet="ab<&\"'İß ßé.-\u0301", max_size=60), st.text(alphabet="abé ", max_size=10))
def test_taking_the_marks_away_gives_the_escaped_text(text, asked):
    shown = marker(asked).marked(text)
    assert shown.replace("<mark>", "").replace("</mark>", "") == escape(text)


def test_the_snippet_is_the_part_with_the_most_marks():
    dull = "Nothing to see in this sentence at all. " * 20
    shown = marker("sparse attention").snippet(f"{dull}Sparse things. Sparse attention is here. {dull}")
    assert "<mark>Sparse</mark> <mark>attention</mark> is here" in shown
    assert shown.startswith("… ")
    assert shown.endswith(" …")
    assert len(re.sub("<.*?>", "", shown)) < SNIPPET + 30


def test_a_mark_deep_in_a_long_sentence_is_shown():
    assert "<mark>needle</mark>" in marker("needle").snippet("hay " * 500 + "needle" + " hay" * 500)


def test_a_snippet_ends_beside_a_formula_not_within():
    text = f"{'hay ' * 63}$x \\in \\mathbb{{R}}^d$ needle {'hay ' * 100}"
    assert "$" not in text[:252]
    assert marker("hay").snippet(text).count("$") == 2
    assert marker("needle").snippet(f"{'hay ' * 200}$a. b {'c ' * 90}needle$ {'hay ' * 100}").count("$") == 2


def test_a_short_text_is_its_own_snippet():
    assert marker("x").snippet("All of it.") == "All of it."
