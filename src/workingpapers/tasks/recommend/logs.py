"""Logs of who took what, by name.

    movielens           films that people gave four stars or more; needs no network
    movielens-100k      the same of an older sample; from the package recbole, or downloaded once
    taken.parquet       a CSV, TSV (either also .gz) or Parquet table with the columns user, item and time
    mydata:load         a function of a module, called without arguments, that returns such a table (pandas)

All other columns of a user's table describe the item, by the first of its rows that has a value: numbers; categories;
several values, as a list or as text with "|" between them; or text, which is taken as its words where most items have a
text of their own. A column of labels, if there is one, is left out: every row counts as taken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workingpapers.data.impressions import called, fingerprint, moments
from workingpapers.data.packaged_impressions import LIKED, packaged_table
from workingpapers.errors import (
    UserError,
    existing_file,
    refuse_label,
    similar_files,
    table_kind,
    unknown_name,
    user_path,
)

if TYPE_CHECKING:
    import pandas as pd

    from workingpapers.methods.recommenders.sequences import Log

USER, ITEM, TIME = "user", "item", "time"
NAMES = ("movielens", "movielens-100k")
FEWEST = 5  # people who must have liked a film of MovieLens
FORMS = (
    "Other logs: a .csv, .tsv (either also .gz) or .parquet file with the columns user, item and time, or "
    "package.module:function."
)


@dataclass(frozen=True, kw_only=True)
class NamedLog:
    """A log with what is known of its items.

    Attributes:
        name: as the user asked for it.
        fingerprint: hex digest that changes when any value changes.
        log: with a table of features of the items, None where nothing is known of them.
        kinds: column of the features to kind, as `Schema.fit` takes it.
        texts: the columns of the features that hold words of texts.
        sentences: what is known of each item as a text, "Toy Story, 1995, Comedy"; its label where nothing is.
        remarks: what the user should know of it.
    """

    name: str
    fingerprint: str
    log: Log
    kinds: dict[str, str]
    texts: tuple[str, ...]
    sentences: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def load_log(name: str, label: str = "label") -> NamedLog:
    """Return a log by name, path or function.

    Raises:
        UserError: nothing is known by that name, or what is there cannot be used.
    """
    if name in NAMES:
        refuse_label(name, label)
        return movielens(name)
    if table_kind(Path(name)):
        from workingpapers.data.tables import read_table

        return from_table(read_table(existing_file(name), label), name, label)
    if (path := user_path(name)).exists():
        raise UserError(f"{name} is {'a folder' if path.is_dir() else 'of another type'}. {FORMS}")
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        return from_table(called(name), name, label)
    raise unknown_name("log", name, [*NAMES, *similar_files(name)], FORMS)


def movielens(name: str = "movielens") -> NamedLog:
    """Return the films to which people gave four stars or more, as far as five people or more did.

    Args:
        name: "movielens", of 670 people until 2016, or "movielens-100k", of 942 people in 1997 and 1998.
    """
    import pandas as pd

    from workingpapers.data.movielens import ratings

    found = packaged_table("dslabs", "movielens") if name == "movielens" else ratings()
    found = found.sort_values(["userId", "timestamp", "rownames"], ignore_index=True)
    found = found[found["rating"] >= LIKED]
    found = found[found.groupby("movieId")["movieId"].transform("size") >= FEWEST]
    genres = found["genres"].where(found["genres"] != "(no genres listed)", "")
    year = found["year"].map(lambda y: None if pd.isna(y) else str(int(y)))
    table = pd.DataFrame(
        {
            USER: found["userId"],
            ITEM: found["movieId"],
            TIME: found["timestamp"],
            "title": found["title"],
            "year": year,
            "decade": year.str[:3],
            "first_genre": genres.str.split("|").str[0],
            "genres": genres,
        }
    )
    made = from_table(table, name, "label", {"title": "words"}, told=("title", "year", "genres"))
    remark = f"The catalogue is of the {len(made.log.items)} films that {FEWEST} people or more liked."
    return replace(made, remarks=(remark,))


def from_table(
    table: pd.DataFrame, name: str, label: str, known: dict[str, str] | None = None, told: Sequence[str] | None = None
) -> NamedLog:
    """Return the log of a user's table; see the module for its columns.

    Args:
        table: a row for each time that somebody took something.
        name: of the log.
        label: a column that is left out; "label" need not be there.
        known: kinds of columns that need not be found out.
        told: columns that make up the items' sentences; None takes texts first, then all others but numbers.

    Raises:
        UserError: no rows, a column that is missing, there twice or lacks values, or times that are neither finite
            numbers nor dates.
    """
    from workingpapers.data.tables import check_label
    from workingpapers.methods.recommenders.sequences import Log

    absent = [column for column in (USER, ITEM, TIME) if column not in table.columns]
    if absent:
        raise UserError(f"{name} lacks the columns {absent}; it has {list(table.columns)}. {FORMS}")
    twice = table.columns[table.columns.duplicated()]
    if len(twice):
        raise UserError(f"{name} has the column {twice[0]!r} more than once.")
    if label != "label":  # else it would be passed over, and all runs be made once more
        check_label(name, list(table.columns.difference([USER, ITEM, TIME])), label)
    times = moments(table[TIME], name)
    described = table.drop(columns=[c for c in (USER, TIME, label) if c in table.columns])
    try:
        features = described.groupby(ITEM, sort=True).first()
    except TypeError as error:
        raise UserError(f"{name}: column {ITEM!r} holds values that are not single ones: {error}.") from error
    kinds = {column: (known or {}).get(column) or _kind(features[column]) for column in features.columns}
    texts = tuple(column for column, kind in kinds.items() if kind == "words")
    others = [column for column, kind in kinds.items() if kind != "numerical" and column not in texts]
    sentences = _sentences(features, [*texts, *others] if told is None else told)
    for column in texts:
        features[column] = features[column].fillna("").map(_words)
        kinds[column] = "multi"
    try:
        log = Log.from_table(table.assign(**{TIME: times}), features=features if len(features.columns) else None)
    except ValueError as error:
        raise UserError(f"{name}: {error}.") from error
    if not len(features.columns):
        sentences = tuple(map(str, log.items))
    return NamedLog(name=name, fingerprint=fingerprint(table), log=log, kinds=kinds, texts=texts, sentences=sentences)


def values_of(value: Any) -> list[str]:
    """Return the values of a feature of one item as text; none where it is missing."""
    import pandas as pd

    if isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0:
        return [str(v) for v in value]
    return [] if pd.isna(value) else [v for v in str(value).split("|") if v]


def _sentences(features: pd.DataFrame, columns: Sequence[str]) -> tuple[str, ...]:
    made = []
    for item, *values in features[list(columns)].itertuples(name=None):
        parts = [" ".join(values_of(value)) for value in values]
        made.append(", ".join(filter(None, parts)) or str(item))
    return tuple(made)


def _words(text: object) -> str:
    return "|".join(re.findall(r"\w+", str(text).lower()))


def _kind(column: pd.Series) -> str:
    """Return the kind of a column of features, "words" for text of which most items have one of their own."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column):
        return "numerical"
    present = column.dropna()
    if any(isinstance(value, (list, tuple)) or hasattr(value, "tolist") for value in present):
        return "multi"
    texts = present.astype(str)
    if texts.str.contains("|", regex=False).any():
        return "multi"
    return "words" if texts.nunique() > len(column) / 2 else "categorical"
