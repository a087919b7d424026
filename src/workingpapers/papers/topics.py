"""The topic tree: the map on which every paper has a place.

The tree follows the survey "Pre-Trained Models: Past, Present and Future" (Han et al., AI Open 2021, arXiv 2106.07139);
topics it does not have are marked `after_survey`. Papers name their topics in their cards, never the other way round.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from msgspec import Struct, convert

from workingpapers.errors import unknown_name


class Topic(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A place on the map.

    Attributes:
        id: unique name.
        title: for people.
        parent: id of the topic above; None for the root alone.
        kind: what sort of place it is.
        gist: one sentence.
        external: libraries and models outside this project that belong here.
        after_survey: whether the topic is ours and not the survey's.
    """

    id: str
    title: str
    parent: str | None = None
    kind: Literal["root", "background", "direction", "technique", "problem", "future"]
    gist: str
    external: tuple[str, ...] = ()
    after_survey: bool = False


@functools.cache
def load_topics() -> Mapping[str, Topic]:
    """Return every topic by id, in the order of the file: parents before children."""
    table = tomllib.loads(Path(__file__).with_name("topics.toml").read_text(encoding="utf-8"))
    return MappingProxyType({entry["id"]: convert(entry, Topic) for entry in table["topic"]})


def topic(name: str) -> Topic:
    """Return the topic with that id.

    Raises:
        UserError: there is none; the message has the nearest ids.
    """
    topics = load_topics()
    if name not in topics:
        raise unknown_name("topic", name, topics, "`papers topics` lists them.")
    return topics[name]


def path(name: str) -> tuple[str, ...]:
    """Return the ids from the root down to a topic, itself included."""
    found = topic(name)
    return (*path(found.parent), name) if found.parent else (name,)


def children(name: str) -> tuple[str, ...]:
    """Return the ids right below a topic."""
    return tuple(child.id for child in load_topics().values() if child.parent == topic(name).id)


def walk(name: str) -> Iterator[str]:
    """Yield a topic's id and all ids below it, depth first."""
    yield name
    for child in children(name):
        yield from walk(child)
