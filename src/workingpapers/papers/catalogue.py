"""The catalogue: every card, read once, and the search over it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from workingpapers.errors import UserError, unknown_name
from workingpapers.papers.card import Card, read_card
from workingpapers.papers.topics import load_topics, walk

CARDS = Path(__file__).parent / "cards"


@functools.cache
def load_catalogue() -> Mapping[str, Card]:
    """Return every card by slug, in alphabetical order.

    Raises:
        UserError: a card does not fit the schema or names an unknown topic.
    """
    return MappingProxyType({file.stem: _placed(read_card(file)) for file in sorted(CARDS.glob("*.toml"))})


def _placed(card: Card) -> Card:
    for name in card.topics:
        if name not in load_topics():
            problem = unknown_name("topic", name, load_topics())
            raise UserError(f"Card {card.slug}.toml: topics: {problem}")
    return card


def paper(slug: str) -> Card:
    """Return a paper's card.

    Raises:
        UserError: no paper has that slug; the message has the nearest slugs.
    """
    catalogue = load_catalogue()
    if slug not in catalogue:
        raise unknown_name("paper", slug, catalogue, "`papers list` lists them.")
    return catalogue[slug]


def select(*, task: str | None = None, topic: str | None = None, year: int | None = None) -> list[Card]:
    """Return the cards of a task, of a topic with all topics below it, and of a year; None does not filter.

    Raises:
        UserError: no paper has that task, no topic has that id, or no paper is of that year.
    """
    cards = list(load_catalogue().values())
    tasks = {card.task for card in cards if card.task}
    if task is not None and task not in tasks:
        raise unknown_name("task", task, tasks)
    years = {card.year for card in cards}
    if year is not None and year not in years:
        raise UserError(f"No paper of the year {year}. Known: {min(years)} to {max(years)}.")
    if topic is not None and topic not in load_topics():
        raise unknown_name("topic", topic, load_topics(), "`papers topics` lists them.")
    below = None if topic is None else set(walk(topic))
    return [
        card
        for card in cards
        if (task is None or card.task == task)
        and (year is None or card.year == year)
        and (below is None or below.intersection(card.topics))
    ]
