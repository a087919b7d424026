"""Logs, the split, batches and ranked lists, against definitions on small logs."""

from datetime import date

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workingpapers.methods.recommenders.sequences import (
    Log,
    SequenceRecommender,
    last_of,
    leave_last_out,
    leave_new_out,
    padded,
    thinned,
    windows,
)


def log_of(*histories, items=None):
    """Return a log of histories given as lists of positions."""
    count = items or 1 + max(max(history, default=0) for history in histories)
    return Log(
        np.array([f"i{i}" for i in range(count)], object),
        np.array([f"u{i}" for i in range(len(histories))], object),
        [np.array(history, np.int64) for history in histories],
    )


TABLE = pd.DataFrame({"user": ["b", "a", "b", "a", "b"], "item": [7, 7, 3, 5, 5], "time": [3.0, 2.0, 1.0, 2.0, 2.0]})


def test_histories_are_in_the_order_of_time_and_ties_in_that_of_rows():
    log = Log.from_table(TABLE)
    assert list(log.items) == [3, 5, 7]
    assert dict(zip(log.users, [log.items[h].tolist() for h in log.histories], strict=True)) == {
        "a": [7, 5],
        "b": [3, 5, 7],
    }
    assert log.counts().tolist() == [1, 2, 2]
    assert log.positions([7, 3]).tolist() == [2, 0]


def test_features_are_the_catalogue():
    features = pd.DataFrame({"title": list("wxyz")}, index=[5, 9, 7, 3])
    log = Log.from_table(TABLE, features=features)
    assert log.items.tolist() == [5, 9, 7, 3]
    assert [log.items[h].tolist() for h in log.histories] == [[7, 5], [3, 5, 7]]
    assert log.counts().tolist() == [2, 0, 2, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": TABLE.drop(columns="time")}, r"lacks columns \['time'\]"),
        ({"table": TABLE[:0]}, "holds no rows"),
        ({"table": TABLE.to_numpy()}, r"a log is made of a pandas\.DataFrame; got ndarray"),
        ({"table": TABLE.assign(item=[7, None, 3, 5, 5])}, "'item' has no value in row 1"),
        ({"table": TABLE.assign(time=[3, 2, np.inf, 2, 1])}, "'time' holds inf in row 2"),
        ({"table": TABLE.assign(time=["10", "9", "8", "7", "6"])}, "'time' holds '10' in row 0; times must be finite"),
        ({"table": TABLE.assign(time=[date(2024, 1, 1), 2, 3, 4, 5])}, "'time' holds times that have no order"),
        ({"table": TABLE.assign(item=[[7], [3], [5], [5], [5]])}, "'item' holds values that are not single ones"),
        ({"table": pd.concat([TABLE, TABLE[["user"]]], axis=1)}, "column 'user' occurs more than once"),
        ({"features": pd.DataFrame({"title": ["x", "y"]}, index=[7, 3])}, "features lacks item 5"),
        ({"features": pd.DataFrame({"title": ["x", "y"]}, index=[7, 7])}, "item 7 more than once"),
    ],
)
def test_bad_logs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Log.from_table(**{"table": TABLE} | change)


def test_unknown_items_are_named():
    with pytest.raises(ValueError, match="no item 4"):
        Log.from_table(TABLE).positions([7, 4])


histories = st.lists(st.lists(st.integers(0, 9), min_size=0, max_size=15), min_size=1, max_size=6)


@given(given_=histories, last=st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_the_split_leaks_nothing_and_loses_nothing(given_, last):
    log = log_of(*given_, items=10)
    if all(len(history) < last + 2 for history in given_):
        with pytest.raises(ValueError, match="no user has"):
            leave_last_out(log, last)
        return
    split = leave_last_out(log, last)
    asked = iter(zip(split.histories, split.targets, strict=True))
    for before, after in zip(given_, split.train.histories, strict=True):
        held = [next(asked) for _ in range(last)] if len(before) >= last + 2 else []
        assert [*after, *(target for _, target in held)] == before
        assert all(history.tolist() == after.tolist() for history, _ in held)
    assert next(asked, None) is None


@given(given_=histories, new=st.sets(st.integers(0, 9)))
@settings(max_examples=100, deadline=None)
def test_new_items_are_in_no_training_and_nothing_after_a_target_is(given_, new):
    log, mask = log_of(*given_, items=10), np.isin(np.arange(10), list(new))
    wanted = []  # by the definition: for every user the whole history before the target, and the target
    for history in given_:
        ends = [i for i, item in enumerate(history) if item in new and sum(x not in new for x in history[:i]) >= 2]
        wanted.append((history[: ends[-1]], history[ends[-1]]) if ends else (history, None))
    if all(target is None for _, target in wanted):
        with pytest.raises(ValueError, match="no user took a new item"):
            leave_new_out(log, mask)
        return
    split = leave_new_out(log, mask)
    old = [([item for item in before if item not in new], target) for before, target in wanted]
    assert [history.tolist() for history in split.train.histories] == [before for before, _ in old]
    asked = zip((h.tolist() for h in split.histories), split.targets, strict=True)
    assert list(asked) == [(before, target) for before, target in old if target is not None]


def test_new_items_are_told_by_the_whole_catalogue():
    with pytest.raises(ValueError, match=r"new has shape \(2,\); the catalogue has 6 items"):
        leave_new_out(log_of([0, 1, 2], items=6), np.ones(2, bool))


@given(given_=histories.filter(any), share=st.floats(0.05, 1), seed=st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_a_thinned_log_keeps_its_share_in_order(given_, share, seed):
    log = log_of(*given_, items=10)
    found, again = (thinned(log, share, np.random.default_rng(seed)) for _ in range(2))
    total = sum(map(len, given_))
    assert sum(map(len, found.histories)) == max(1, round(share * total))
    for before, after, same in zip(given_, found.histories, again.histories, strict=True):
        rest = iter(before)
        assert all(item in rest for item in after)
        assert after.tolist() == same.tolist()
    assert total == sum(map(len, thinned(log, 1.0, np.random.default_rng(seed)).histories))


@pytest.mark.parametrize("share", [0.0, 1.1, float("nan")])
def test_bad_shares_are_named(share):
    with pytest.raises(ValueError, match="share is"):
        thinned(log_of([0, 1]), share, np.random.default_rng(0))


@given(given_=histories, length=st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_every_item_but_the_first_is_a_label_once_after_what_came_before_it(given_, length):
    wanted = sorted((h[i - 1], h[i]) for h in given_ for i in range(1, len(h)))
    if not wanted:
        with pytest.raises(ValueError, match="no history has two items"):
            windows([np.array(h) for h in given_], length)
        return
    ids, labels = windows([np.array(h, np.int64) for h in given_], length)
    assert ids.shape == labels.shape
    assert ids.shape[1] <= length
    real = labels != 0
    assert torch.equal(real, ids != 0)
    assert sorted(zip((ids[real] - 1).tolist(), (labels[real] - 1).tolist(), strict=True)) == wanted
    assert (real.int().diff(dim=1) <= 0).all()  # padded on the right
    follows = real[:, 1:]
    assert torch.equal(ids[:, 1:][follows], labels[:, :-1][follows])


def test_padding_keeps_the_latest_on_the_left():
    rows = [np.array([4, 0, 2]), np.array([1])]
    assert padded(rows, 2).tolist() == [[1, 3], [2, 0]]
    assert padded(rows, 9, fill=-1).tolist() == [[4, 0, 2], [1, -1, -1]]
    states = torch.arange(4.0).view(2, 2, 1)
    assert last_of(states, padded(rows, 2)).tolist() == [[1], [2]]


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.uint32])
def test_small_integers_do_not_overflow(kind):
    largest = min(np.iinfo(kind).max, 299)
    rows, wide = [np.array([3, largest], kind)], [np.array([3, largest])]
    for fill in (0, -1):
        assert torch.equal(padded(rows, 2, fill=fill), padded(wide, 2, fill=fill))
    model = Next().fit(log_of([0, 1, 2], items=300))
    assert model.recommend(rows, k=3).tolist() == model.recommend(wide, k=3).tolist()
    assert torch.equal(model.ranks(rows, np.array([5])), model.ranks(wide, np.array([5])))


class Next(SequenceRecommender):
    """Knows that item i + 1 follows item i, and likes high positions otherwise."""

    def _fit(self, log):
        self.bonus_ = torch.arange(len(log.items)) / 100

    def _scores(self, histories):
        scores = self.bonus_.repeat(len(histories), 1)
        for row, history in enumerate(histories):
            scores[row, (history[-1] + 1) % len(self.items_)] += 1
        return scores


def test_recommendations_leave_out_what_was_taken():
    model = Next().fit(log_of([0, 1, 2], items=6))
    found = model.recommend([np.array([0, 1]), np.array([4])], k=2)
    assert found.tolist() == [["i2", "i5"], ["i5", "i3"]]
    assert model.ranks([np.array([0, 1]), np.array([5, 4])], np.array([3, 0])).tolist() == [3, 3]
    # Above 3 stand 2, 5 and 4; above 0 stand 3, 2 and 1, while 4 and 5 were taken.


def test_ranks_among_some_items_are_those_of_a_catalogue_without_the_others():
    model, kept = Next().fit(log_of([0, 1, 2], items=6)), np.array([True, False, True, True, False, True])
    histories, targets = [np.array([0, 1]), np.array([5, 4, 2])], np.array([3, 0])
    # Of 0, 2, 3 and 5: after 0 and 1 stands 2, then 5, then 3; 2 and 5 were taken before 0, and only 3 is above it.
    assert model.ranks(histories, targets, kept).tolist() == [2, 1]
    assert torch.equal(model.ranks(histories, targets, np.ones(6, bool)), model.ranks(histories, targets))
    with pytest.raises(ValueError, match="a target is not among"):
        model.ranks(histories, np.array([1, 0]), kept)
    assert model.ranks([], np.zeros(0, np.int64)).shape == (0,)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([6], "targets hold positions 6 to 6; the items are 0 to 5"),
        ([-5], "targets hold positions -5 to -5"),  # which numpy would count from the end
        ([2, 3], r"targets have shape \(2,\); 1 histories need one each"),
    ],
)
def test_bad_targets_are_named(targets, message):
    with pytest.raises(ValueError, match=message):
        Next().fit(log_of([0, 1, 2], items=6)).ranks([np.array([0])], np.array(targets))


def test_scores_that_are_no_numbers_are_refused():
    class Broken(Next):
        def _scores(self, histories):
            return super()._scores(histories) * torch.nan

    model = Broken().fit(log_of([0, 1, 2], items=6))
    for ask in (model.score, model.recommend, lambda h: model.ranks(h, np.array([1]))):
        with pytest.raises(ValueError, match="Broken gives scores that are NaN"):
            ask([np.array([0])])


@pytest.mark.parametrize(
    ("history", "k", "message"),
    [
        ([], 1, "history 1 is empty"),
        ([6], 1, "history 1 holds positions outside 0 to 5"),
        ([-1], 1, "history 1 holds positions outside"),
        (["i2"], 1, "history 1 must hold positions of items; got <U2"),
        ([0.5], 1, "history 1 must hold positions of items; got float64"),
        ([1, 2, 1], 5, "k is 5; it must be from 1 to 4"),
        (5, 1, r"history 1 must hold positions of items; got int64 of shape \(\)"),
        ([1], 0, "k is 0"),
        ([1], "3", "k is '3'; it must be a whole number"),
    ],
)
def test_bad_requests_are_named(history, k, message):
    model = Next().fit(log_of([0, 1, 2], items=6))
    with pytest.raises(ValueError, match=message):
        model.recommend([np.array([0]), np.array(history, None if history else np.int64)], k=k)


def test_what_is_no_log_or_an_empty_one_is_refused():
    with pytest.raises(ValueError, match=r"fit takes a Log, which Log\.from_table makes of a table; got DataFrame"):
        Next().fit(TABLE)
    with pytest.raises(ValueError, match="no interactions"):
        Next().fit(log_of([], items=3))
