"""The schema of cards: what fits comes back as it was, what doesn't is refused with card, field and what is allowed."""

import json
import tempfile
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workingpapers.errors import UserError
from workingpapers.papers.card import Card, Check, Claim, Expectation, Reported, read_card

CARD = """
slug = "a-paper"
title = "A Paper"
arxiv = "2307.11342"
year = 2023
venue = "ICCV 2023"
topics = ["feature-transfer"]
task = "probe"
door = "scikit-learn classifier"
summary = "What it does."

[[claims]]
id = "first"
text = "It is better."
metric = "accuracy"
baseline = "linear probe"
reported = [{ on = "ImageNet-1K", value = 83.15, baseline = 82.04, unit = "%" }]
source = "Table 2"
verified = true
check = { task = "probe", entry = "a-paper", expect = "helps" }
"""


def read(folder, text, name="a-paper.toml"):
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return read_card(file)


def test_a_card_is_read(tmp_path):
    card = read(tmp_path, CARD)
    assert card.code is None
    assert card.method is None
    assert card.claims[0].reported == (Reported("ImageNet-1K", 83.15, 82.04, "%"),)
    assert card.claims[0].check == Check(task="probe", entry="a-paper", expect="helps", setting="standard")


TASK, CHECK = 'task = "probe"\ndoor', 'check = { task = "probe", entry = "a-paper", expect = "helps" }'
BAD = {  # what of the card is replaced, by what, and what the message must say
    "unknown field, with the nearest": ("year = 2023", "year = 2023\nyaer = 1", ["the card: ", "`yaer`", "'year'"]),
    "field missing": ('title = "A Paper"', "", ["the card: ", "missing", "`title`"]),
    "year is text": ("year = 2023", 'year = "2023"', ["year: ", "int", "str"]),
    "year out of range": ("year = 2023", "year = 1066", ["year: ", "1990"]),
    "not an arXiv id": ("2307.11342", "2307", ["arxiv: is '2307'; needed: an arXiv identifier"]),
    "not a slug": (TASK, 'task = "The Probe"\ndoor', ["task: is 'The Probe'; needed: small letters"]),
    "topic that is no slug": ('["feature-transfer"]', '["a", "B"]', ["topics[1]: is 'B'; needed: small"]),
    "no topic": ('topics = ["feature-transfer"]', "topics = []", ["topics: ", "length >= 1"]),
    "empty summary": ("What it does.", " ", ["summary: is ' '; needed: a text"]),
    "insecure address": (TASK, 'code = "http://x.org"\ndoor', ["code: ", "https"]),
    "method elsewhere": (TASK, 'method = "torch:nn"\nusage = "1"\ndoor', ["method: ", "workingpapers"]),
    "method without usage": (TASK, 'method = "workingpapers.a:B"\ndoor', ["method", "usage", "both"]),
    "usage without method": (TASK, 'usage = "1"\ndoor', ["method", "usage", "both"]),
    "expectation": ('"helps"', '"better"', ["claims[0].check.expect: ", "'better'", *get_args(Expectation)]),
    "unknown field of a check": (", expect", ', against = "x", expect', ["claims[0].check: ", "against", "versus"]),
    "field of a check missing": ('entry = "a-paper", ', "", ["claims[0].check: ", "missing", "`entry`"]),
    "value is text": ("83.15", '"83 %"', ["claims[0].reported[0].value: ", "float", "str"]),
    "unknown field of a number": ("baseline = 82", "baselin = 82", ["claims[0].reported[0]: ", "'baseline'"]),
    "neither check nor reason": (CHECK, "", ["claims[0]: ", "'first'", "neither a [claims.check] nor"]),
    "both check and reason": (CHECK, CHECK + '\nuntestable = "x"', ["claims[0]: ", "'first'", "not both"]),
    "empty reason": (CHECK, 'untestable = ""', ["claims[0].untestable: is ''; needed: a text"]),
    "not TOML": ("year = 2023", "year = ", ["not valid TOML", "line 5"]),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(tmp_path, name):
    old, new, expected = BAD[name]
    assert CARD.count(old) == 1
    with pytest.raises(UserError, match=r"^Card a-paper\.toml") as error:
        read(tmp_path, CARD.replace(old, new))
    for part in expected:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("venue", "appeared"),
    [("ICCV 2023", "ICCV 2023"), ("arXiv", "arXiv, 2023"), ("KDD 2024", "KDD 2024, first in 2023")],
)
def test_two_years_are_told_apart(tmp_path, venue, appeared):
    assert read(tmp_path, CARD.replace("ICCV 2023", venue)).appeared == appeared


def test_claims_of_one_id_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"Card a-paper.toml: .*distinct ids.*first"):
        read(tmp_path, CARD + CARD[CARD.index("[[claims]]") :])


def test_the_slug_is_the_file_name(tmp_path):
    with pytest.raises(UserError, match=r"Card other.toml: slug: is 'a-paper'.*'other'"):
        read(tmp_path, CARD, "other.toml")


def test_a_file_that_is_not_text_is_refused(tmp_path):
    file = tmp_path / "a-paper.toml"
    file.write_bytes(b'slug = "\xff"')
    with pytest.raises(UserError, match=r"Card a-paper\.toml is not valid TOML"):
        read_card(file)


slugs = st.from_regex(r"[a-z0-9]{1,8}(-[a-z0-9]{1,8}){0,2}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda text: any(not c.isspace() for c in text)
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
reported = st.builds(Reported, on=texts, value=numbers, baseline=st.none() | numbers, unit=st.just("%"))
checks = st.builds(
    Check,
    task=slugs,
    entry=slugs,
    expect=st.sampled_from(get_args(Expectation)),
    setting=slugs,
    data=st.none() | texts,
    metric=st.none() | texts,
    versus=st.none() | slugs,
)
tests = st.one_of(
    st.fixed_dictionaries({"check": checks, "untestable": st.none()}),
    st.fixed_dictionaries({"check": st.none(), "untestable": texts}),
)
claims = st.builds(
    lambda id, text, numbers, verified, test: Claim(
        id=id, text=text, metric=text, baseline=text, reported=numbers, source=text, verified=verified, **test
    ),
    slugs,
    texts,
    st.lists(reported, max_size=2).map(tuple),
    st.booleans(),
    tests,
)
methods = st.one_of(
    st.just({"method": None, "usage": None}),
    st.fixed_dictionaries({"method": st.just("workingpapers.methods.heads.loki:Loki"), "usage": texts}),
)
cards = st.builds(
    lambda slug, text, year, code, topics, task, method, notes, claims: Card(
        slug=slug,
        title=text,
        arxiv="2307.11342",
        year=year,
        venue=text,
        code=code,
        topics=topics,
        task=task,
        door=text,
        summary=text,
        notes=notes,
        claims=claims,
        **method,
    ),
    slugs,
    texts,
    st.integers(1990, 2100),
    st.none() | st.just("https://github.com/example/code"),
    st.lists(slugs, min_size=1, max_size=3).map(tuple),
    st.none() | slugs,
    methods,
    st.lists(texts, max_size=2).map(tuple),
    st.lists(claims, max_size=3, unique_by=lambda claim: claim.id).map(tuple),
)


def toml(value):
    """Write a value as TOML, all in one line; None, for which TOML has no word, is left out."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {toml(inner)}' for key, inner in value.items() if inner is not None)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml(inner) for inner in value)}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@given(cards)
@settings(deadline=None)  # the first example pays for imports
def test_any_card_round_trips(card):
    fields = {name: value for name, value in msgspec.to_builtins(card).items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        text = "\n".join(f"{name} = {toml(value)}" for name, value in fields.items())
        assert read(Path(folder), text, f"{card.slug}.toml") == card
