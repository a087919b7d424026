"""Logs of who took what, by name.

    movielens           films that people gave four stars or more; needs no network
    taken.parquet       a CSV or Parquet table of the user's, with the columns user, item and time
    mydata:load         a function of a module, called without arguments, that returns such a table (pandas)

All other columns of a user's table describe the item, by the first of its rows that has a value: numbers; categories;
several values, as a list or as text with "|" between them; or text, which is taken as its words where most items have a
text of their own. A column of labels, if there is one, is left out: every row counts as taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from workingpapers.data.impressions import LIKED, _call, _existing, _rdataset, fingerprint
from workingpapers.errors import UserError, unknown_name

if TYPE_CHECKING:
    import pandas as pd

    from workingpapers.methods.recommenders.sequences import Log

USER, ITEM, TIME = "user", "item", "time"
FEWEST = 5  # people who must have liked a film of MovieLens
FORMS = "Other logs: a .csv or .parquet file with the columns user, item and time, or package.module:function."


@dataclass(frozen=True, kw_only=True)
class NamedLog:
    """A log with what is known of its items.

    Attributes:
        name: as the user asked for it.
        fingerprint: hex digest that changes when any value changes.
        log: with a table of features of the items, None where nothing is known of them.
        kinds: column of the features to kind, as `Schema.fit` takes it.
        texts: the columns of the features that hold words of texts.
        remarks: what the user should know of it.
    """

    name: str
    fingerprint: str
    log: Log
    kinds: dict[str, str]
    texts: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def load_log(name: str, label: str = "label") -> NamedLog:
    """Return a log by name, path or function.

    Raises:
        UserError: nothing is known by that name, or what is there cannot be used.
    """
    if name == "movielens":
        return movielens()
    path = Path(name).expanduser()
    if path.suffix.lower() in (".csv", ".parquet"):
        from workingpapers.data.tables import read_table

        return from_table(read_table(_existing(name), label), name, label)
    if path.exists():
        raise UserError(f"{name} is {'a folder' if path.is_dir() else 'of another type'}. {FORMS}")
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        return from_table(_call(name), name, label)
    raise unknown_name("log", name, ["movielens"], FORMS)


def movielens() -> NamedLog:
    """Return the films to which 670 people gave four stars or more, as far as five people or more did."""
    import pandas as pd

    found = _rdataset("dslabs", "movielens").sort_values(["userId", "timestamp", "rownames"], ignore_index=True)
    found = found[found["rating"] >= LIKED]
    found = found[found.groupby("movieId")["movieId"].transform("size") >= FEWEST]
    genres = found["genres"].where(found["genres"] != "(no genres listed)", "")
    table = pd.DataFrame(
        {
            USER: found["userId"],
            ITEM: found["movieId"],
            TIME: found["timestamp"],
            "title": found["title"],
            "year": found["year"],
            "decade": found["year"] // 10,
            "first_genre": genres.str.split("|").str[0],
            "genres": genres,
        }
    )
    made = from_table(table, "movielens", "label", {"title": "words", "year": "categorical", "decade": "categorical"})
    remark = f"The catalogue is of the {len(made.log.items)} films that {FEWEST} people or more liked."
    return replace(made, remarks=(remark,))


def from_table(table: pd.DataFrame, name: str, label: str, known: dict[str, str] | None = None) -> NamedLog:
    """Return the log of a user's table; see the module for its columns.

    Raises:
        UserError: no rows, a column that is missing or lacks values, or times that are neither numbers nor dates.
    """
    import pandas as pd

    from workingpapers.methods.recommenders.sequences import Log

    absent = [column for column in (USER, ITEM, TIME) if column not in table.columns]
    if absent:
        raise UserError(f"{name} lacks the columns {absent}; it has {list(table.columns)}. {FORMS}")
    times = table[TIME]
    if not pd.api.types.is_numeric_dtype(times):
        times = pd.to_datetime(times, errors="coerce", format="mixed", utc=True)
        bad = (times.isna() & table[TIME].notna()).to_numpy()
        if bad.any():
            odd = table[TIME].iloc[int(bad.argmax())]
            raise UserError(f"{name}: column {TIME!r} holds {odd!r}, which is neither a number nor a date.")
    described = table.drop(columns=[c for c in (USER, TIME, label) if c in table.columns])
    features = described.groupby(ITEM, sort=True).first()
    kinds = {column: (known or {}).get(column) or _kind(features[column]) for column in features.columns}
    texts = tuple(column for column, kind in kinds.items() if kind == "words")
    for column in texts:
        features[column] = features[column].fillna("").map(_words)
        kinds[column] = "multi"
    try:
        log = Log.from_table(table.assign(**{TIME: times}), features=features if len(features.columns) else None)
    except ValueError as error:
        raise UserError(f"{name}: {error}.") from error
    return NamedLog(name=name, fingerprint=fingerprint(table), log=log, kinds=kinds, texts=texts)


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
