"""Impressions by name and of one's own: what is a feature, what is a click, what is held back, what is refused."""

import subprocess
import sys
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from workingpapers.data.datasets import load_dataset
from workingpapers.data.impressions import check_impressions, from_table, load_impressions
from workingpapers.errors import UserError
from workingpapers.methods.recommenders.schema import Schema


def log(n=20, **columns):
    """A small log of clicks."""
    rng = np.random.default_rng(0)
    made = {"ad": rng.integers(5, size=n), "price": rng.normal(size=n), "clicked": np.arange(n) % 2}
    return pd.DataFrame(made | columns)


# A table of one's own


def written(table, path):
    """The path of a table's file, whose name tells what it holds."""
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if ".tsv" in path.suffixes else ",")
    return path


KINDS = ["csv", "tsv", "csv.gz", "tsv.gz", "parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_from_a_file(tmp_path, kind):
    path = written(log(user=[f"u{i % 3}" for i in range(20)]), tmp_path / f"log.{kind}")
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
    decimals = [Decimal(int(time)) / 10 for time in times]
    for column in (times, times - 10, decimals, pd.to_datetime("2024-01-30") + pd.to_timedelta(times, unit="D")):
        found = from_table(log(time=column), "log", "clicked")
        assert found.held.tolist() == (times >= 16).tolist()
        assert found.table.columns.tolist() == ["ad", "price"]
    text = from_table(log(time=[f"2024-{1 + i // 10:02}-{1 + i % 10:02}" for i in times]), "log", "clicked")
    assert text.held.tolist() == (times >= 16).tolist()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_whole_numbers_are_names_with_and_without_gaps(tmp_path, kind):
    ads = [*range(3)] * 6 + [0, None]
    columns = {"ad": ads, "price": [0.5, None] * 10, "nothing": [None] * 20, "limit": [np.inf, *[None] * 18, 1]}
    path = written(
        log(**{c: pd.Series(values, dtype=float) for c, values in columns.items()}), tmp_path / f"log.{kind}"
    )
    found = load_impressions(str(path), label="clicked").table
    assert found["ad"].dtype == "Int64"
    assert [found[c].dtype == float for c in ("price", "nothing", "limit")] == [True] * 3
    schema = Schema.fit([found[["ad", "price"]]])
    assert schema.field("ad").values == ("0", "1", "2")
    whole = log(ad=range(20)).astype({"price": "float32"})
    assert from_table(whole, "log", "clicked").table.dtypes.tolist() == [np.int64, np.float32]


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
        "def ends(): raise SystemExit(1)\n"
        "def numbered(): return load().set_axis([0, 1], axis=1)\n"
        "def twice(): return pd.concat([load(), load()], axis=1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert len(load_impressions("my_clicks:load")) == 4
    with pytest.raises(UserError, match="OSError: gone"):
        load_impressions("my_clicks:broken")
    with pytest.raises(UserError, match="returned list"):
        load_impressions("my_clicks:other")
    with pytest.raises(UserError, match="raised SystemExit: 1"):
        load_impressions("my_clicks:ends")
    assert list(load_impressions("my_clicks:numbered", label="1").table.columns) == ["0"]
    with pytest.raises(UserError, match=r"my_clicks:twice has columns \['label'\] more than once"):
        load_impressions("my_clicks:twice")


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
        (
            log(clicked=[0.5, 1.0] * 10),
            "clicked",
            r"column 'clicked': .* 0\.5, which is not a whole number",
        ),
        (log(clicked=np.arange(20) / 7), "clicked", "column 'clicked' has 20 values"),
        (log(clicked=[None, 1.0] * 10), "clicked", "10 of 20 rows have no label"),
        (log().iloc[:0], "clicked", "no rows"),
        (log()[["clicked"]], "clicked", "no feature"),
        (log(part="train"), "clicked", "column 'part' holds 'train'"),
        (log(part=["train", "valid"] * 10), "clicked", "column 'part' holds 'valid'"),
        (log(time=1), "clicked", "no row is earlier"),
        (log(time=["2024-01-01", "soon"] * 10), "clicked", "'soon' in row 1, which is neither"),
        (log(time=[*range(19), np.inf]), "clicked", "inf in row 19, which is neither"),
        (log(time=[*range(19), None]), "clicked", "no value in row 19"),
        (log(time=pd.to_datetime(["2024-01-01"] * 19 + [None])), "clicked", "no value in row 19"),
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_look_at_a_files_header_tells_whether_it_has_the_label(tmp_path, kind):
    path = str(written(log(**{'a, "b"': 1}), tmp_path / f"log.{kind}"))
    check_impressions(path, "clicked")
    check_impressions(path, 'a, "b"')
    with pytest.raises(UserError, match="no column 'click' for the labels; nearest: 'clicked'"):
        check_impressions(path, "click")


def test_a_look_refuses_names_and_leaves_contents_to_the_reader(tmp_path):
    for name, message in [
        ("movielen", "Did you mean 'movielens'"),
        (str(tmp_path), "is a folder"),
        (str(tmp_path / "gone.tsv.gz"), "There is no file"),
        (__file__, "is of another type"),
        ("avazu:gone.csv", "There is no file gone.csv"),
    ]:
        with pytest.raises(UserError, match=message):
            check_impressions(name, "clicked")
    (tmp_path / "train.csv").write_text("0\t1\n")  # Criteo's columns are known: no header is looked at
    check_impressions("no_such_module:load", "clicked")
    for name in ("movielens", f"criteo:{tmp_path / 'train.csv'}"):
        check_impressions(name, "label")
        with pytest.raises(UserError, match=r"label is 'clicked', but .* is no table"):
            check_impressions(name, "clicked")
    (tmp_path / "blank.csv").write_text("\n\nad,clicked\n1,0\n2,1\n")
    check_impressions(str(tmp_path / "blank.csv"), "clicked")
    assert len(load_impressions(str(tmp_path / "blank.csv"), label="clicked")) == 2
    (tmp_path / "empty.csv").touch()
    for name in ("cut.parquet", "cut.csv.gz"):
        (tmp_path / name).write_bytes(b"PAR1 and then nothing")
    for name in ("cut.parquet", "cut.csv.gz", "empty.csv"):
        path = tmp_path / name
        check_impressions(str(path), "clicked")
        with pytest.raises(UserError, match="cannot be read"):
            load_impressions(str(path))


def test_damaged_archives_are_named(tmp_path):
    path = written(log(n=2000), tmp_path / "log.csv.gz")
    whole = path.read_bytes()
    for damaged in (whole[:-200], whole[:300] + bytes(100) + whole[400:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"log.csv.gz cannot be read"):
            load_impressions(str(path), label="clicked")


def test_importing_names_imports_nothing_heavy():
    code = "import sys, workingpapers.data.impressions; print({'numpy', 'pandas', 'torch'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_lists_of_arrow_that_pandas_wrote_are_read(tmp_path):
    lists = pd.arrays.ArrowExtensionArray(pa.array([[1], [2, 3]]))
    path = tmp_path / "t.parquet"
    pd.DataFrame({"tags": lists, "clicked": [0, 1]}, index=["a", "b"]).to_parquet(path)
    table = load_impressions(str(path), label="clicked").table
    assert [list(row) for row in table["tags"]] == [[1], [2, 3]]
    assert list(table.columns) == ["tags"]
