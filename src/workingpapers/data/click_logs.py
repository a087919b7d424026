"""Published logs of impressions, in the formats that their owners give them: Criteo's and Avazu's.

Only the first million rows are read, which is what a machine holds at ease; both logs are in order of time, so that the
last of these rows are held back.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workingpapers.data.impressions import Impressions, from_table
from workingpapers.errors import UserError, unreadable

if TYPE_CHECKING:
    import pandas as pd

MOST = 1_000_000  # rows that are read, the first


def _read(path: Path, **options: Any) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_csv(path, nrows=MOST, low_memory=False, **options)
    except (OSError, EOFError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise unreadable(path, error) from error


def criteo(path: Path) -> Impressions:
    """Return a log in the format of Criteo's display advertising challenge.

    Tab-separated without a header: the label, 13 counts, 26 hashed values; in order of time, so that the last rows are
    held back. Counts x become log(1 + x), negative ones 0.

    Raises:
        UserError: another format.
    """
    import numpy as np
    import pandas as pd

    counts, values = [f"I{i}" for i in range(1, 14)], [f"C{i}" for i in range(1, 27)]
    found = _read(path, sep="\t", header=None, dtype=dict.fromkeys(range(14, 40), str))  # "00000006" is no number
    if found.shape[1] != 40:
        raise UserError(f"{path} has {found.shape[1]} columns between tabs; Criteo's format has 40: label, 13, 26.")
    found.columns = ["label", *counts, *values]
    texts = [c for c in counts if not pd.api.types.is_numeric_dtype(found[c])]
    if texts:
        raise UserError(f"{path}: column {texts[0]} holds other things than counts; is this Criteo's format?")
    found[counts] = np.log1p(found[counts].clip(lower=0).astype(float))
    return replace(from_table(found.assign(time=np.arange(len(found))), str(path), "label"), remarks=_first(found))


def avazu(path: Path) -> Impressions:
    """Return a log in the format of Avazu's click-through rate challenge.

    Comma-separated with a header: id, click, hour as YYMMDDHH, and 21 columns. The hour becomes an hour of the day and
    a weekday, and the latest hours are held back.

    Raises:
        UserError: another format.
    """
    import pandas as pd

    found = _read(path)
    absent = [c for c in ("id", "click", "hour") if c not in found.columns]
    if absent:
        raise UserError(f"{path} has no column {absent[0]!r}, as Avazu's format has; it has {list(found.columns)[:8]}.")
    when = pd.to_datetime(found["hour"].astype(str).str.zfill(8), format="%y%m%d%H", errors="coerce")
    bad = when.isna()
    if bad.any():
        raise UserError(f"{path}: hour {found['hour'][int(bad.to_numpy().argmax())]!r} is not written as YYMMDDHH.")
    made = found.drop(columns=["id", "hour"]).assign(time=when, hour=when.dt.hour, weekday=when.dt.day_of_week)
    return replace(from_table(made, str(path), "click"), remarks=_first(found))


def _first(found: pd.DataFrame) -> tuple[str, ...]:
    return (f"Only the first {MOST:,} rows are read.",) if len(found) == MOST else ()
