"""The topic tree: a tree indeed, and every paper has its place on it."""

import tomllib
from pathlib import Path

import pytest

from workingpapers.errors import UserError
from workingpapers.papers import topics
from workingpapers.papers.catalogue import load_catalogue
from workingpapers.papers.topics import children, load_topics, path, topic, walk

ROOT = "pre-trained-models"
TOPICS = load_topics()


def test_ids_and_titles_are_unique():
    file = Path(topics.__file__).with_name("topics.toml")
    entries = tomllib.loads(file.read_text(encoding="utf-8"))["topic"]
    assert len(entries) == len(TOPICS)
    assert len({entry["title"] for entry in entries}) == len(entries)


def test_there_is_one_root():
    assert [name for name, at in TOPICS.items() if at.parent is None] == [ROOT]
    assert [name for name, at in TOPICS.items() if at.kind == "root"] == [ROOT]


def test_parents_come_before_children_so_there_is_no_cycle():
    seen = {None}
    for name, at in TOPICS.items():
        assert at.parent in seen
        seen.add(name)


def test_it_is_at_most_four_levels_deep_below_the_root():
    assert 1 < max(len(path(name)) - 1 for name in TOPICS) <= 4


def test_every_paper_has_a_place():
    cards = load_catalogue()
    placed = {slug for name in walk(ROOT) for slug, card in cards.items() if name in card.topics}
    assert placed == set(cards)
    assert [slug for slug, card in cards.items() if ROOT in card.topics] == ["ptm-survey"]  # it is the map


def test_no_paper_is_placed_twice_on_one_path():
    for slug, card in load_catalogue().items():
        above = {name for leaf in card.topics for name in path(leaf)[:-1]}
        assert above.isdisjoint(card.topics), slug
        assert len(set(card.topics)) == len(card.topics), slug


def test_walking_from_the_root_meets_every_topic_once():
    assert sorted(walk(ROOT)) == sorted(TOPICS)
    assert next(walk(ROOT)) == ROOT


@pytest.mark.parametrize("name", TOPICS)
def test_path_children_and_walk_tell_the_same_tree(name):
    assert path(name)[0] == ROOT
    assert path(name)[-1] == name
    for above, below in zip(path(name), path(name)[1:], strict=False):
        assert below in children(above)
    for child in children(name):
        assert path(child) == (*path(name), child)
    below = [other for other in TOPICS if name in path(other)]
    assert sorted(walk(name)) == sorted(below)


@pytest.mark.parametrize("function", [topic, path, children, lambda name: list(walk(name))])
def test_an_unknown_topic_is_refused_with_the_nearest(function):
    with pytest.raises(UserError, match=r"Unknown topic 'prunning'\. Did you mean 'pruning'"):
        function("prunning")


def test_a_topic_that_others_know_says_so():
    assert "timm" in topic("feature-transfer").external
    assert topic("feature-transfer").after_survey is False
    assert topic("vision-language").after_survey is True
