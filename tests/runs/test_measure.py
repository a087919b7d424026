"""What a run's process measures: parameters, memory, time, and metrics that are what the task says."""

import functools
import os
import random
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import toytask
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from workingpapers.errors import UserError
from workingpapers.runs import measure
from workingpapers.runs.measure import count_parameters, execute, hardware, peak_memory_mb, prepare, versions
from workingpapers.tasks.protocol import Conditions, Prepared, Task

X = np.random.default_rng(0).normal(size=(60, 4))
y = np.arange(60) % 3
CONDITIONS = Conditions("toytask:task", "standard", "numbers", "")
LINEAR = 3 * 4 + 3  # a linear classifier of three classes on four features


def fitted(estimator):
    return estimator.fit(X, y)


def closure(*held):
    return lambda inputs: held


class Plain:
    """A predictor of no library, holding what it is given."""

    def __init__(self, **held):
        vars(self).update(held)

    def predict(self, inputs):
        return inputs


class Wrapper(nn.Module):
    """A module around another."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.ones(1))


def frozen(module):
    return module.requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: nn.Linear(4, 3), LINEAR),
        (lambda: nn.Sequential(frozen(nn.Linear(9, 9)), nn.Linear(4, 3)), LINEAR),
        (lambda: frozen(nn.Linear(4, 3)), 0),
        (lambda: nn.Parameter(torch.ones(5)), 5),
        (lambda: torch.ones(5), 0),
        (lambda: fitted(LogisticRegression()), LINEAR),
        (lambda: LogisticRegression(), 0),
        (lambda: fitted(NearestCentroid()), 12),
        (lambda: fitted(GaussianNB()), 24),
        (lambda: fitted(KNeighborsClassifier()), 0),
        (lambda: fitted(MLPClassifier((5,), tol=1)), 4 * 5 + 5 + 5 * 3 + 3),
        (lambda: fitted(DecisionTreeClassifier(max_leaf_nodes=4)), 4 + 3),
        (lambda: fitted(RandomForestClassifier(5, max_leaf_nodes=3)), 5 * (3 + 2)),
        (lambda: fitted(make_pipeline(Normalizer(), LogisticRegression())), LINEAR),
        (lambda: fitted(GridSearchCV(LogisticRegression(), {"C": [1, 2]})), LINEAR),
        (lambda: fitted(CalibratedClassifierCV(LogisticRegression(), cv=2, ensemble=False)).calibrated_classifiers_, 1),
        (lambda: closure(nn.Linear(4, 3)), LINEAR),
        (lambda: closure([nn.Linear(4, 3), "text", None]), LINEAR),
        (lambda: functools.partial(print, nn.Linear(4, 3), end=nn.Linear(1, 1)), LINEAR + 2),
        (lambda: fitted(LogisticRegression()).predict, LINEAR),
        (lambda: nn.Linear(4, 3).forward, LINEAR),
        (lambda: Plain(head=nn.Linear(4, 3)).predict, LINEAR),
        (lambda: Plain(heads=[nn.Linear(4, 3), fitted(LogisticRegression())]), 2 * LINEAR),
        (lambda: Plain(heads={"one": nn.Linear(4, 3)}), LINEAR),
        (lambda: Plain(inner=Plain(head=nn.Linear(4, 3))), LINEAR),
        (lambda: Plain(kind=nn.Linear, library=torch, head=nn.Linear(4, 3)), LINEAR),
        (lambda: Plain(direction=nn.Parameter(torch.ones(5)), data=torch.ones(99)), 5),
        (lambda: {"head": nn.Linear(4, 3)}, LINEAR),
        (lambda: np.ones(7), 0),
        (lambda: 3.5, 0),
        (lambda: None, 0),
        (lambda: max, 0),
    ],
)
def test_count_parameters(make, expected):
    if expected == 1:  # the calibrated classifier: the linear one inside counts
        assert count_parameters(make()) >= LINEAR
    else:
        assert count_parameters(make()) == expected


def test_what_is_shared_counts_once():
    head = nn.Linear(4, 3)
    assert count_parameters([head, head]) == LINEAR
    assert count_parameters((Wrapper(head), head)) == LINEAR + 1
    assert count_parameters((head, Wrapper(head))) == LINEAR + 1
    assert count_parameters(Plain(network=Wrapper(head), head=head, weight=head.weight)) == LINEAR + 1
    assert count_parameters(nn.ModuleList([Wrapper(head), Wrapper(head)])) == LINEAR + 2
    estimator = fitted(LogisticRegression())
    assert count_parameters([estimator, closure(estimator), estimator.predict]) == LINEAR


def test_many_closures_and_methods_all_count():
    # Python gives the address of one passing object to the next: it must not count as seen.
    models = [closure(nn.Linear(4, 3)) if n % 2 else fitted(LogisticRegression()).predict for n in range(20)]
    assert count_parameters(models) == 20 * LINEAR
    assert count_parameters(nn.ModuleList(nn.Linear(4, 3) for _ in range(20))) == 20 * LINEAR


def test_what_holds_itself_ends():
    loop = Plain(head=nn.Linear(4, 3))
    loop.me = [loop]
    assert count_parameters(loop) == LINEAR


def test_prepare_asks_the_setting():
    prepared = prepare(CONDITIONS, ("base",))
    assert (prepared.data_fingerprint, prepared.remarks) == ("numbers", ("1 image was skipped",))
    with pytest.raises(UserError, match="Unknown data set 'missing'"):
        prepare(replace(CONDITIONS, data="missing"), ("base",))


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run_with(monkeypatch, one_thread):
    """Execute one entry of a task whose measuring is replaced."""

    def run(fit, scores=None, seed=3):
        setting = toytask.setting("standard")
        if scores is not None:
            setting = replace(setting, measure=scores)
        task = Task("toytask:task", title="", settings=[setting])
        task.entry(name="mine")(fit)
        monkeypatch.setattr(measure, "load_task", lambda name: task)
        return execute(CONDITIONS, "mine", seed, 1, Prepared("", ""))

    return run


def test_execute_returns_what_a_run_holds():
    found = execute(CONDITIONS, "better", 2, 1, Prepared("", ""))
    value = 52.2 + np.random.default_rng(2).normal(size=100).mean()
    assert found["metrics"] == pytest.approx({"accuracy": value, "loss": -value})
    assert all(type(value) is float for value in found["metrics"].values())
    assert found["curves"] == {"loss": [(1.0, 0.5), (2.0, 0.25)]}
    assert set(found["measured"]) == {
        "fit_seconds",
        "cpu_seconds",
        "predict_seconds",
        "peak_memory_mb",
        "peak_gpu_mb",
        "parameters",
    }


def test_fitting_is_timed_apart_from_scoring(run_with):
    def scores(fit, problem, context):
        fit(problem)
        time.sleep(0.1)  # between two fits: belongs to predicting
        fit(problem)
        return {"accuracy": 1, "loss": np.float32(2)}

    measured = run_with(lambda train, context: time.sleep(0.2), scores)["measured"]
    assert 0.4 <= measured["fit_seconds"] < 1
    assert 0.1 <= measured["predict_seconds"] < 0.6
    assert measured["cpu_seconds"] < 0.2  # sleeping costs none


def test_the_processor_s_seconds_count_every_thread_of_the_process(run_with):
    def busy(train, context):
        last = time.process_time() + 0.3
        while time.process_time() < last:
            pass

    assert run_with(busy, lambda fit, problem, context: {"accuracy": 1, "loss": fit(problem) or 0})["measured"][
        "cpu_seconds"
    ] == pytest.approx(0.3, abs=0.1)


def test_the_largest_of_several_fits_counts_as_the_model(run_with):
    def scores(fit, problem, context):
        for width in (1, 5, 2):
            fit(width)
        return {"accuracy": 1.0, "loss": 1.0}

    assert run_with(lambda width, context: nn.Linear(width, 1), scores)["measured"]["parameters"] == 6


@pytest.mark.parametrize("draw", [random.random, np.random.random, lambda: float(torch.rand(()))])
def test_what_an_entry_draws_from_global_generators_follows_the_seed(run_with, draw):
    one, same, other = (run_with(lambda train, context: 50 + draw(), seed=seed)["metrics"] for seed in (1, 1, 2))
    assert one == same != other


def test_threads_are_limited(run_with):
    import threadpoolctl

    def count(train, context):
        assert torch.get_num_threads() == 1
        assert {pool["num_threads"] for pool in threadpoolctl.threadpool_info()} == {1}

    run_with(count, lambda fit, problem, context: {"accuracy": 1.0, "loss": fit(problem) or 0.0})


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"accuracy": 1.0}, r"measured \['accuracy'\]; its metrics are \['accuracy', 'loss'\]"),
        ({"accuracy": 1.0, "loss": 1.0, "more": 1.0}, "its metrics are"),
        ({"accuracy": float("nan"), "loss": 1.0}, "Not a finite number: accuracy = nan"),
        ({"accuracy": 1.0, "loss": -float("inf")}, "Not a finite number: loss = -inf"),
    ],
)
def test_metrics_that_are_missing_unknown_or_not_finite(run_with, metrics, message):
    with pytest.raises(UserError, match=message):
        run_with(lambda train, context: None, lambda fit, problem, context: metrics)


def test_optional_metrics_may_be_missing():
    metrics = (toytask.ACCURACY, replace(toytask.LOSS, optional=True))
    assert measure._checked({"accuracy": 1}, metrics) == {"accuracy": 1.0}
    with pytest.raises(UserError, match="its metrics are"):
        measure._checked({"loss": 1}, metrics)


def test_peak_memory_grows_with_what_is_allocated_and_stays():
    before = peak_memory_mb()
    held = np.ones((int(before) + 200) * 2**17)  # more than the peak so far, in MiB
    assert peak_memory_mb() > before + 150
    size = held.nbytes
    del held
    assert peak_memory_mb() >= size / 2**20


def test_versions_and_hardware():
    assert versions()["torch"] == torch.__version__
    assert hardware()["cores"] == os.cpu_count()
    assert 0 < hardware()["memory_gb"] < 1e5
    assert hardware()["processor"]
