"""The schema of a paper's card."""

from __future__ import annotations

import re
import tomllib
import typing
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, ValidationError, convert

from workingpapers.errors import UserError, nearest

FORMS = {  # what texts have to match, in words
    (SLUG := r"^[a-z0-9]+(-[a-z0-9]+)*$"): "small letters and digits in words joined by dashes, as 'moment-probing'",
    (TEXT := r"\S"): "a text that is not blank",
    (IMPORT := r"^workingpapers(\.\w+)+:\w+$"): "'workingpapers.methods.room.module:Name'",
    (ARXIV := r"^\d{4}\.\d{4,5}$"): "an arXiv identifier without version, as '2302.02334'",
    (ADDRESS := r"^https://\S+$"): "an address that starts with https://",
}
Slug = Annotated[str, Meta(pattern=SLUG)]
Text = Annotated[str, Meta(pattern=TEXT)]
ImportPath = Annotated[str, Meta(pattern=IMPORT)]
Expectation = Literal["helps", "hurts", "no difference", "not worse"]


class Reported(Struct, frozen=True, forbid_unknown_fields=True):
    """A number that the paper reports, beside that of what it is compared with.

    Attributes:
        on: data, model and setting: "ImageNet-1K, ViT-B/16".
        value: the paper's method.
        baseline: what it is compared with; None where only one number is given.
        unit: "%", "x", "points"; empty for plain numbers.
    """

    on: Text
    value: float
    baseline: float | None = None
    unit: str = ""


class Check(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a claim is measured again here: two entries of a task, paired over seeds.

    Attributes:
        task: name of the task.
        entry: the entry that stands for the paper.
        expect: what the claim says about `entry` against `versus`. "not worse" allows "helps" and "no difference".
        setting: a setting of the task; its standard one if not named.
        data: a data set; the setting's default if not named.
        metric: a metric of the setting; its first if not named.
        versus: the entry compared with; the setting's named baseline if not named.
        tolerance: only with "not worse": by how much `entry` may be worse, in units of the metric; the metric's margin
            if not named.

    Raises:
        ValueError: a tolerance that is not positive, or beside another expectation.
    """

    task: Slug
    entry: Slug
    expect: Expectation
    setting: Slug = "standard"
    data: str | None = None
    metric: str | None = None
    versus: Slug | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.tolerance is not None and not (self.expect == "not worse" and self.tolerance > 0):
            raise ValueError(f'tolerance is {self.tolerance}; it must be above 0, beside expect = "not worse"')


class Claim(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One thing that a paper says it achieves.

    Attributes:
        id: unique within the card.
        text: the claim in a sentence.
        metric: what is compared: "top-1 accuracy".
        baseline: what the paper compares with.
        reported: the paper's numbers; may be empty where the claim is a trend or a theorem.
        source: where the claim stands: "abstract", "Table 2", "the authors' repository, readme".
        verified: whether the numbers were read at that source; False for numbers from memory.
        check: the measurement that tests the claim here.
        untestable: why there is no check: what it would take.
    """

    id: Slug
    text: Text
    metric: Text
    baseline: Text
    reported: tuple[Reported, ...] = ()
    source: Text
    verified: bool
    check: Check | None = None
    untestable: Text | None = None

    def __post_init__(self) -> None:
        if self.check is None and self.untestable is None:
            raise ValueError(f"claim {self.id!r} has neither a [claims.check] nor the reason why it is `untestable`")
        if self.check is not None and self.untestable is not None:
            raise ValueError(f"claim {self.id!r} has a check and the reason why it is untestable; give one, not both")


class Card(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A paper: what it is, what it claims, and how its method is used.

    Attributes:
        slug: the paper's name in commands, file names and addresses.
        title: as published.
        arxiv: arXiv identifier without version.
        year: of first publication.
        venue: where it was published; "arXiv" for a preprint.
        code: address of the authors' repository; None where there is none.
        topics: ids of the topic tree.
        task: the task in which it is measured; None for surveys.
        door: where the method plugs in.
        method: import path of the method, "workingpapers.methods.room.module:Name"; None until it exists.
        usage: code that uses the method, ready to copy; it runs as it stands.
        summary: what the paper does and why it matters, in our words.
        notes: what readers should know: what is unverified, where code and paper differ.
        claims: at least one, but for surveys.
    """

    slug: Slug
    title: Text
    arxiv: Annotated[str, Meta(pattern=ARXIV)]
    year: Annotated[int, Meta(ge=1990, le=2100)]
    venue: Text
    code: Annotated[str, Meta(pattern=ADDRESS)] | None = None
    topics: Annotated[tuple[Slug, ...], Meta(min_length=1)]
    task: Slug | None = None
    door: Text
    method: ImportPath | None = None
    usage: Text | None = None
    summary: Text
    notes: tuple[Text, ...] = ()
    claims: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        ids = [claim.id for claim in self.claims]
        if len(ids) != len(set(ids)):
            raise ValueError(f"claims need distinct ids; got {ids}")
        if (self.method is None) != (self.usage is None):
            raise ValueError("method and usage go together: name both or neither")

    @property
    def appeared(self) -> str:
        """Where and when: "ICCV 2023", "arXiv, 2024", or "KDD 2018, first in 2017" after a preprint."""
        if str(self.year) in self.venue:
            return self.venue
        return f"{self.venue}, {'first in ' if self.venue[-4:].isdecimal() else ''}{self.year}"


def read_card(path: Path) -> Card:
    """Read and validate a card.

    Raises:
        UserError: the file is not TOML or does not fit the schema; the message names card, field and what is allowed.
    """
    table: dict[str, typing.Any] = {}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        card = convert(table, Card)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"Card {path.name} is not valid TOML: {error}") from error
    except ValidationError as error:
        raise UserError(f"Card {path.name}: {_explained(str(error), table)}") from error
    if card.slug != path.stem:
        raise UserError(f"Card {path.name}: slug: is {card.slug!r}; it must equal the file's name, {path.stem!r}")
    return card


def _explained(problem: str, table: dict[str, typing.Any]) -> str:
    """Return msgspec's message as "field: what is wrong", with the value and the allowed or the nearest ones."""
    message, _, place = problem.partition(" - at `$")
    place = place.rstrip("`").lstrip(".")
    kind: typing.Any = Card
    for name in re.findall(r"\w+", re.sub(r"\[\.*\d*\]", "", place)):
        kind = _inner(typing.get_type_hints(kind)[name])
    form = next((words for pattern, words in FORMS.items() if message.endswith(f"regex {pattern!r}")), "")
    if form:
        message = f"is {_value(table, place)!r}; needed: {form}"
    unknown = re.search(r"unknown field `(.+)`", message)
    if unknown:
        message += f". {nearest(unknown[1], kind.__struct_fields__)}"
    if typing.get_origin(kind) is Literal:
        message += f"; allowed: {', '.join(repr(value) for value in typing.get_args(kind))}"
    return f"{place or 'the card'}: {message}"


def _value(table: typing.Any, place: str) -> typing.Any:
    """Return what stands in a card's table at a place as "claims[0].id"."""
    for step in re.findall(r"\w+", place):
        table = table[int(step) if step.isdigit() else step]
    return table


def _inner(kind: typing.Any) -> typing.Any:
    """Return the type inside `X | None` and `tuple[X, ...]`."""
    if typing.get_origin(kind) is Literal or not typing.get_args(kind):
        return kind
    return _inner(typing.get_args(kind)[0])
