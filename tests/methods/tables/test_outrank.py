"""Scores against their definition by loops, scikit-learn, closed forms and noise; the selector; files."""

import gzip
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_selection import mutual_info_classif
from sklearn.metrics import mutual_info_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from workingpapers.errors import UserError, UserRemark
from workingpapers.methods.tables.outrank import OutRankSelector, cardinality_aware_mi, cross, order_3mr, rank_file


@parametrize_with_checks([OutRankSelector(), OutRankSelector(method="3mr", batch_size=16)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def by_definition(x, y):
    """The shifted score by a loop over values and rows."""
    n, score = len(x), 0.0

    def entropy(labels):
        p = np.unique(labels, return_counts=True)[1] / len(labels)
        return -(p * np.log(p)).sum()

    for v in set(x):
        rows = [i for i in range(n) if x[i] == v]
        real = [y[i] for i in rows]
        null = [y[(i + len(rows)) % n] for i in rows]
        score += len(rows) / n * (entropy(null) - entropy(real))
    return score


columns = st.integers(2, 60).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, top), min_size=n, max_size=n) for top in (7, 2)])
)


@given(pair=columns)
@settings(deadline=None)
def test_the_shifted_score_is_its_definition(pair):
    x, y = pair
    same = len(set(zip(x, y, strict=True))) == len(set(x)) == len(set(y))
    expected = mutual_info_score(x, y) if same else by_definition(x, y)
    assert cardinality_aware_mi(x, y) == pytest.approx(expected, abs=1e-12)


@given(pair=columns, seed=st.integers(0, 9))
@settings(deadline=None)
def test_plain_mutual_information_is_scikit_learns_and_names_do_not_matter(pair, seed):
    x, y = map(np.array, pair)
    raw = cardinality_aware_mi(x, y, null="none")
    assert raw == pytest.approx(mutual_info_score(x, y), abs=1e-12)
    assert raw == pytest.approx(mutual_info_classif(x[:, None], y, discrete_features=True)[0], abs=1e-12)
    rename = np.random.default_rng(seed).permutation(8)
    for null in ("none", "shift", "expected"):
        before = cardinality_aware_mi(x, y, null=null)
        assert cardinality_aware_mi([f"v{v}" for v in rename[x]], y, null=null) == pytest.approx(before, abs=1e-12)


@pytest.mark.parametrize("null", ["shift", "permute", "expected", "none"])
def test_limits(null):
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=200)
    p = y.mean()
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    score = {name: cardinality_aware_mi(x, label, null=null) for name, (x, label) in {
        "constant label": (rng.integers(9, size=200), np.zeros(200)),
        "constant column": (np.zeros(200), y),
        "itself": (y, y),
        "itself by another name": (np.where(y, "a", "b"), y),
        "all distinct": (rng.permutation(200), y),
    }.items()}  # fmt: skip
    # The expected value comes from sums of floating-point numbers, the others cancel exactly.
    assert score["constant label"] == pytest.approx(0, abs=1e-12)
    assert score["constant column"] == pytest.approx(0, abs=1e-12)
    assert score["itself"] == pytest.approx(entropy)
    assert score["itself by another name"] == pytest.approx(entropy)
    if null == "none":
        assert score["all distinct"] == pytest.approx(entropy)  # the trap
    elif null == "expected":
        assert score["all distinct"] == pytest.approx(0, abs=1e-12)
    else:
        assert score["all distinct"] == 0


def test_equal_sums_are_no_identity():
    x, y = np.array([0, 3, 3, 0, 0, 0, 1, 1]), np.array([2, 2, 0, 0, 1, 1, 2, 0])
    assert x.sum() == y.sum()
    assert cardinality_aware_mi(x, y) == pytest.approx(by_definition(x, y))


@pytest.mark.parametrize("null", ["shift", "permute", "expected"])
def test_noise_scores_zero_on_average_at_any_cardinality(null):
    rng = np.random.default_rng(0)
    for values in (2, 50, 1500):
        scores = [
            cardinality_aware_mi(
                rng.integers(values, size=3000), rng.random(3000) < 0.3, null=null, random_state=rng_seed
            )
            for rng_seed in range(12)
        ]
        raw = cardinality_aware_mi(rng.integers(values, size=3000), rng.random(3000) < 0.3, null="none")
        # Four standard errors of the mean.
        assert abs(np.mean(scores)) < 4 * np.std(scores) / math.sqrt(12)
        assert values < 50 or raw > 5 * abs(np.mean(scores))


def test_a_shift_is_noisier_than_what_is_expected():
    rng = np.random.default_rng(0)
    x, y = rng.integers(50, size=(60, 2000)), rng.random((60, 2000)) < 0.1
    shifted, expected = (
        np.std([cardinality_aware_mi(a, b, null=null) for a, b in zip(x, y, strict=True)])
        for null in ("shift", "expected")
    )
    size = math.log(9) * math.sqrt(0.1 * 0.9 / 2000)
    assert size / 2 < shifted < 2 * size
    assert expected < shifted / 4


def test_what_is_expected_is_the_mean_over_all_orders():
    x, y = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 0, 1, 0])
    rng = np.random.default_rng(0)
    taken = cardinality_aware_mi(x, y, null="none") - cardinality_aware_mi(x, y, null="expected")
    sample = [mutual_info_score(x, rng.permutation(y)) for _ in range(500)]
    assert np.mean(sample) == pytest.approx(taken, abs=4 * np.std(sample) / math.sqrt(500))


def test_xor_is_seen_by_the_cross_alone():
    rng = np.random.default_rng(0)
    a, b = rng.integers(2, size=(2, 4000))
    y = a ^ b
    assert abs(cardinality_aware_mi(a, y)) < 0.005
    assert abs(cardinality_aware_mi(b, y)) < 0.005
    assert cardinality_aware_mi(cross(a, b), y) == pytest.approx(math.log(2), abs=0.005)


def test_a_cross_tells_all_pairs_apart():
    a, b = np.array([1, 11, 1, 11]), np.array([12, 2, 12, 3])
    assert cross(a, b).tolist() == [0, 1, 0, 2]


def test_missing_values_are_one_value():
    x = pd.Series(["a", None, "b", np.nan] * 5)
    assert cardinality_aware_mi(x, [0, 1, 0, 1] * 5) == cardinality_aware_mi(["a", "?", "b", "?"] * 5, [0, 1, 0, 1] * 5)


def test_sorted_rows_deceive_a_shift_and_the_selector_shuffles():
    rng = np.random.default_rng(0)
    x = np.sort(rng.integers(10, size=5000))
    y = rng.random(5000) < np.linspace(0.1, 0.9, 10)[x]
    assert cardinality_aware_mi(x, y) < 0.5 * cardinality_aware_mi(x, y, null="expected")
    found = OutRankSelector().fit(x[:, None], y).scores_[0]
    assert found == pytest.approx(cardinality_aware_mi(x, y, null="expected"), rel=0.05)


def planted(n=4000, seed=0):
    """Columns that tell something, a copy of one, a pair that does so together, and noise of many values."""
    rng = np.random.default_rng(seed)
    a, b, c, d = rng.integers(4, size=n), rng.integers(3, size=n), *rng.integers(2, size=(2, n))
    y = (rng.random(n) < 1 / (1 + np.exp(-(1.2 * (a - 1.5) + 0.8 * (b - 1) + 1.5 * (2 * (c ^ d) - 1))))).astype(int)
    noise = {f"noise{v}": rng.integers(v, size=n) for v in (2, 100, 3000)}
    return pd.DataFrame({**noise, "c": c, "b": b, "copy": a.astype(str), "a": a, "d": d}), y


def order(selector):
    return [selector.feature_names_in_[f] for f in np.argsort(selector.ranking_)]


@pytest.mark.parametrize("options", [{}, {"batch_size": 900}, {"null": "expected"}, {"batch_size": 900, "agg": "mean"}])
def test_planted_columns_come_first_and_plain_information_prefers_noise(options):
    X, y = planted()
    selector = OutRankSelector(3, **options).fit(X, y)
    assert set(order(selector)[:3]) == {"a", "copy", "b"}
    assert list(selector.get_feature_names_out()) == ["b", "copy", "a"]
    assert selector.transform(X).shape == (4000, 3)
    raw = dict(zip(X.columns, selector.mutual_information_, strict=True))
    assert max(raw, key=raw.get) == "noise3000"


def test_three_terms_drop_the_copy_and_find_the_pair():
    X, y = planted()
    selector = OutRankSelector(4, method="3mr", agg="mean").fit(X, y)
    names = list(X.columns)
    assert order(selector)[-1] in ("a", "copy")
    i, j = names.index("c"), names.index("d")
    assert selector.relation_[i, j] > 0.05 > max(selector.scores_[[i, j]])
    assert np.array_equal(selector.relation_, selector.relation_.T)
    assert selector.redundancy_[names.index("a"), names.index("copy")] == pytest.approx(math.log(4), abs=0.01)


def test_three_terms_by_hand():
    relevance = np.array([0.5, 0.6, 0.4])
    redundancy = np.array([[0, 0.6, 0.1], [0.6, 0, 0.3], [0.1, 0.3, 0]])
    relation = np.array([[0, 0.6, 0.0], [0.6, 0, 0.7], [0.0, 0.7, 0]])
    # after 1: column 0 gains 0.5 - 0.6 + 0.6, column 2 gains 0.4 - 0.3 + 0.7
    assert order_3mr(relevance, redundancy, relation) == [1, 2, 0]
    assert order_3mr(relevance, redundancy, relation, alpha=0, beta=0) == [1, 0, 2]


def test_batches_are_weighed_by_their_rows():
    X, y = planted(3000)
    parts = [slice(0, 1000), slice(1000, 1010), slice(1010, 3000)]
    one = {agg: OutRankSelector(agg=agg) for agg in ("mean", "median")}
    for part in parts:
        for selector in one.values():
            selector.partial_fit(X[part], y[part])
    each = []
    rng = np.random.RandomState(0)
    for part in parts:
        shuffled = rng.permutation(len(X[part]))
        each.append(cardinality_aware_mi(X["a"][part].to_numpy()[shuffled], y[part][shuffled]))
    at = list(X.columns).index("a")
    assert one["mean"].scores_[at] == pytest.approx(np.average(each, weights=[1000, 10, 1990]))
    assert one["median"].scores_[at] == pytest.approx(each[2])  # that batch is most of the rows


def write(X, y, path):
    table = X.assign(clicked=y)
    table.loc[::10, "b"] = np.nan
    if path.suffix == ".parquet":
        table.to_parquet(path, row_group_size=700)
    else:
        table.to_csv(path, index=False, sep="\t" if ".tsv" in path.name else ",")
    return path


def test_gaps_in_some_batches_do_not_make_other_values(tmp_path):
    values = np.arange(2000) % 50
    table = {"x": [None if i in range(900, 1000) else int(v) for i, v in enumerate(values)], "y": values % 2}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    found = rank_file(tmp_path / "log.parquet", "y", batch_size=200).iloc[0]
    assert (found["values"], found["coverage"]) == (50, 0.95)


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.csv.gz", "log.parquet"])
def test_files_are_ranked_in_batches(name, tmp_path):
    X, y = planted()
    found = rank_file(write(X, y, tmp_path / name), "clicked", batch_size=1500)
    assert list(found.columns) == ["feature", "score", "mutual_information", "coverage", "values"]
    assert set(found["feature"][:3]) == {"a", "copy", "b"}
    facts = found.set_index("feature")
    assert facts.loc["b", "coverage"] == 0.9
    assert facts.loc["a", "values"] == 4
    assert facts.loc["noise3000", "values"] == pytest.approx(X["noise3000"].nunique(), rel=0.12)  # four errors of 3 %
    assert facts["score"].is_monotonic_decreasing


def test_a_column_has_at_most_as_many_values_as_rows(tmp_path):
    rng = np.random.default_rng(0)
    X = pd.DataFrame({f"price{i}": rng.random(3000) for i in range(8)})  # about half the estimates are too large
    X.loc[::3, "price0"] = np.nan
    X.assign(clicked=rng.random(3000) < 0.5).to_parquet(tmp_path / "log.parquet")
    with pytest.warns(UserRemark, match="of its own in 'price0', 'price1', 'price2', 'price3', 'price4' and 3 more"):
        values = rank_file(tmp_path / "log.parquet", "clicked").set_index("feature")["values"]
    assert values.max() == 3000
    assert values["price0"] <= 2000


GROWTH = """
import resource, sys
from workingpapers.methods.tables.outrank import rank_file
peaks = []
for path in sys.argv[1:]:
    assert rank_file(path, "clicked", batch_size=40_000)["feature"][0] == "signal"
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # in units of 1,024 bytes
print(peaks[1] - peaks[0])
"""


def test_a_file_of_many_batches_takes_the_memory_of_two(tmp_path):
    rng = np.random.default_rng(0)
    for name, groups in (("short", 2), ("long", 40)):
        schema = pa.schema([(c, pa.int64()) for c in ("signal", *"abcd", "clicked")])
        with pq.ParquetWriter(tmp_path / f"{name}.parquet", schema) as file:
            for _ in range(groups):
                columns = rng.integers(5000, size=(6, 40_000))
                columns[5] = rng.random(40_000) < columns[0] / 5000
                file.write_table(pa.table(dict(zip(schema.names, columns, strict=True))))
    paths = [str(tmp_path / f"{name}.parquet") for name in ("short", "long")]
    run = subprocess.run([sys.executable, "-c", GROWTH, *paths], capture_output=True, text=True, check=True)
    # As a table the long file is 77 MB; batches are 2 MB, and the allocator keeps some of what they left.
    assert int(run.stdout) * 1024 < 25e6


def test_files_of_one_batch_equal_the_selector(tmp_path):
    X, y = planted(1000)
    path = tmp_path / "log.parquet"
    X.assign(clicked=y).to_parquet(path)
    found = rank_file(path, "clicked", method="3mr")
    assert found["feature"].tolist() == order(OutRankSelector(method="3mr").fit(X, y))


@pytest.mark.filterwarnings("ignore:Nearly every row")
@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "log.tsv.gz"])
def test_a_file_that_takes_long_shows_how_far_it_is(name, tmp_path, monkeypatch, capsys):
    path = write(*planted(200), tmp_path / name)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws bars on terminals only
    rank_file(path, "clicked", batch_size=50)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("workingpapers.progress.PATIENCE", -1.0)
    monkeypatch.setattr("workingpapers.methods.tables.outrank_reading.MB", 1)
    rank_file(path, "clicked", batch_size=50)
    out, err = capsys.readouterr()
    total = 200 if name == "log.parquet" else path.stat().st_size
    assert out == ""
    assert f"reading {name}" in err
    assert f"{total}/{total}" in err


def test_bad_files_are_named(tmp_path):
    X, y = planted(200)
    good = write(X, y, tmp_path / "log.parquet")
    text = write(X, y, tmp_path / "log.csv")
    (tmp_path / "half.parquet").write_bytes(good.read_bytes()[:3000])
    (tmp_path / "half.csv.gz").write_bytes(gzip.compress(text.read_bytes())[:900])
    (tmp_path / "twice.csv").write_text("a,a,y\n1,2,0\n1,2,1\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "log.json").write_text("{}")
    (tmp_path / "semicolons.csv").write_text("a;y\n1;0\n2;1\n")
    (tmp_path / "header.csv").write_text("a,y\n")
    (tmp_path / "ragged.csv").write_text("a,y\n1,0\n1,2,3,4\n")
    (tmp_path / "wide.csv").write_text("a,y\n1,0,5\n2,1,6\n")
    (tmp_path / "latin.csv").write_bytes("a,y\n\xe9,0\nu,1\n".encode("latin1"))
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "gap.csv").write_text("a,y\n1,0\n2,\n")
    (tmp_path / "one.csv").write_text("a,y\n1,0\n2,0\n")
    (tmp_path / "sorted.csv").write_text("a,y\n" + "1,0\n" * 4 + "2,1\n" * 4)
    (tmp_path / "number.csv").write_text("a,y\n" + "".join(f"1,{i / 7}\n" for i in range(30)))
    (tmp_path / "alone.csv").write_text("y\n1\n0\n")
    (tmp_path / "quote.tsv").write_text('a\ty\n"b\t0\nc\t1\n"d\t0\ne\t1\n')
    pd.DataFrame({"a": [[1], [2]], "y": [0, 1]}).to_parquet(tmp_path / "lists.parquet")
    for name, label, message in [
        ("nowhere.csv", "y", "There is no file"),
        ("on.csv", "y", "There is no file .*on.csv. Did you mean '.*one.csv'"),
        ("log.json", "y", "is no .csv, .tsv or .parquet file"),
        ("folder.csv", "y", "folder.csv is a folder"),
        ("semicolons.csv", "y", "columns are separated by ';'"),
        ("log.parquet", "cliked", r"Unknown column 'cliked' of log.parquet. Did you mean 'clicked'"),
        ("half.parquet", "clicked", "half.parquet cannot be read"),
        ("half.csv.gz", "clicked", "half.csv.gz cannot be read"),
        ("twice.csv", "y", r"columns \['a'\] more than once"),
        ("empty.csv", "y", "empty.csv cannot be read"),
        ("header.csv", "y", "holds no rows"),
        ("wide.csv", "y", r"more values than the header has names \(2\)"),
        ("latin.csv", "y", "it is not UTF-8"),
        ("ragged.csv", "y", "ragged.csv cannot be read"),
        ("gap.csv", "y", "'y' is missing in row 1"),
        ("one.csv", "y", r"has the values \['0'\] in 2 rows"),
        ("sorted.csv", "y", "is sorted by 'y'"),
        ("number.csv", "y", "differs in every row"),
        ("alone.csv", "y", "no column beside the label"),
        ("quote.tsv", "y", "column 'a' holds .* in row 0, over several lines and columns: a quote"),
        ("lists.parquet", "y", "column 'a' of .* does not hold single values"),
    ]:
        with pytest.raises(UserError, match=message):
            rank_file(tmp_path / name, label, batch_size=4 if name == "sorted.csv" else 100_000)


def test_bad_input_is_named():
    for x, y in (([1, 2], [1]), ([], [])):
        with pytest.raises(ValueError, match="they must be as many"):
            cardinality_aware_mi(x, y)
    with pytest.raises(ValueError, match=r"Unknown null 'shft'. Did you mean 'shift'"):
        cardinality_aware_mi([1, 2], [0, 1], null="shft")
    for options, message in [
        ({"k": 0}, "k is 0"),
        ({"k": "3"}, "k is '3'; it must be a whole number"),
        ({"beta": np.nan}, "alpha is 1.0 and beta nan"),
        ({"method": "4mr"}, "Unknown method '4mr'"),
        ({"agg": "max"}, "Unknown agg 'max'"),
        ({"batch_size": 0}, "batch_size is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            OutRankSelector(**options).fit([[1], [2]], [0, 1])
    with pytest.raises(ValueError, match="column 'x' holds values that are not single ones"):
        cardinality_aware_mi(pd.Series([[1], [2]]), [0, 1])
    with pytest.raises(ValueError, match="X has 2 rows and y 1"):
        OutRankSelector().fit(pd.DataFrame({"a": [1, 2]}), [0])
    with pytest.raises(ValueError, match="X has no columns to rank"):
        OutRankSelector().fit(pd.DataFrame(index=[0, 1]), [0, 1])
    with pytest.raises(ValueError, match="batch_size is '9'; it must be a whole number"):
        rank_file("log.csv", "y", batch_size="9")
