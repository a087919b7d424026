"""The schema of a paper's card."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from workingpapers.errors import UserError

Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
ImportPath = Annotated[str, StringConstraints(pattern=r"^workingpapers(\.\w+)+:\w+$")]
Expectation = Literal["helps", "hurts", "no difference", "not worse"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Reported(_Strict):
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


class Check(_Strict):
    """How a claim is measured again here: two entries of a task, paired over seeds.

    Attributes:
        task: name of the task.
        entry: the entry that stands for the paper.
        expect: what the claim says about `entry` against `versus`. "not worse" allows "helps" and "no difference".
        setting: a setting of the task; its standard one if not named.
        data: a data set; the setting's default if not named.
        metric: a metric of the setting; its first if not named.
        versus: the entry compared with; the setting's named baseline if not named.
    """

    task: Slug
    entry: Slug
    expect: Expectation
    setting: Slug = "standard"
    data: str | None = None
    metric: str | None = None
    versus: Slug | None = None


class Claim(_Strict):
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

    @model_validator(mode="after")
    def _checked_or_said_why_not(self) -> Self:
        if (self.check is None) == (self.untestable is None):
            raise ValueError(f"claim {self.id!r} needs either a check or the reason why it is untestable, not both")
        return self


class Card(_Strict):
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
    arxiv: Annotated[str, StringConstraints(pattern=r"^\d{4}\.\d{4,5}$")]
    year: Annotated[int, Field(ge=1990, le=2100)]
    venue: Text
    code: Annotated[str, StringConstraints(pattern=r"^https://\S+$")] | None = None
    topics: Annotated[tuple[Slug, ...], Field(min_length=1)]
    task: Slug | None = None
    door: Text
    method: ImportPath | None = None
    usage: Text | None = None
    summary: Text
    notes: tuple[Text, ...] = ()
    claims: tuple[Claim, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        ids = [claim.id for claim in self.claims]
        if len(ids) != len(set(ids)):
            raise ValueError(f"claims need distinct ids; got {ids}")
        if (self.method is None) != (self.usage is None):
            raise ValueError("method and usage go together: name both or neither")
        return self


def read_card(path: Path) -> Card:
    """Read and validate a card.

    Raises:
        UserError: the file is not TOML or does not fit the schema; the message names card, field and what is allowed.
    """
    try:
        card = Card.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"Card {path.name} is not valid TOML: {error}") from error
    except ValidationError as error:
        raise UserError(f"Card {path.name} does not fit:\n" + "\n".join(_problems(error))) from error
    if card.slug != path.stem:
        raise UserError(f"Card {path.name}: slug: is {card.slug!r}; it must equal the file's name, {path.stem!r}")
    return card


def _problems(error: ValidationError) -> list[str]:
    """Return one line per problem: field, what is wrong, and what was given."""
    lines = []
    for problem in error.errors():
        field = re.sub(r"\.(\d+)", r"[\1]", ".".join(str(part) for part in problem["loc"])) or "the card"
        given = "" if isinstance(problem["input"], dict) else f" (given: {problem['input']!r})"
        lines.append(f"  {field}: {problem['msg']}{given}")
    return lines
