"""Training reaches the optimum of a convex problem, stops early, keeps the best, and spreads over processes."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from clicks import KINDS, Logistic, Normalised, impressions, numeric, train_share
from sklearn.linear_model import LogisticRegression

from workingpapers.methods.attention.sequences import run_processes
from workingpapers.methods.recommenders import training
from workingpapers.methods.recommenders.baselines import FM, MLP
from workingpapers.methods.recommenders.fields import ClickModel, FieldEmbedding
from workingpapers.methods.recommenders.metrics import auc
from workingpapers.methods.recommenders.schema import Schema
from workingpapers.methods.recommenders.training import Plan, chosen_device, predict, seeded, shuffled, train
from workingpapers.methods.tables.common import FullTable


def test_reaches_the_optimum_of_logistic_regression():
    rows, y = numeric()
    model = Logistic(3)
    train(model, rows, y, Plan(learning_rate=0.02, batch_size=400, max_epochs=600))
    peer = LogisticRegression(C=1e8, tol=1e-8).fit(rows.numbers.numpy(), y.numpy())
    # Full-batch Adam comes within its last step of the optimum.
    np.testing.assert_allclose(model.layer.weight.detach().numpy(), peer.coef_, atol=5e-3)


def test_training_shows_how_far_it_is_where_it_takes_long(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws bars on terminals only
    rows, y = numeric()
    train(Logistic(3), rows, y, Plan(batch_size=100, max_epochs=3))
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("workingpapers.progress.PATIENCE", -1.0)
    train(Logistic(3), rows, y, Plan(batch_size=100, max_epochs=3))
    out, err = capsys.readouterr()
    assert out == ""
    assert "training, 3 epochs at most" in err
    assert "1200/1200" in err
    assert "rows/s" in err


def test_stops_early_and_keeps_the_best_epoch():
    table, labels = impressions(600)
    schema = Schema.fit([table], kinds=KINDS)
    rows, y = schema.encode(table), torch.from_numpy(labels)
    torch.manual_seed(0)
    model = ClickModel(FieldEmbedding(schema, 8), MLP(4, 8, (32,)))
    valid = rows[400:], y[400:]
    history = train(model, rows[:400], y[:400], Plan(learning_rate=0.02, batch_size=64), valid=valid)
    assert len(history.auc) == history.best + 1 + 2  # patience
    assert max(history.auc) == history.auc[history.best]
    assert auc(valid[1].numpy(), predict(model, valid[0])) == pytest.approx(history.auc[history.best])
    assert not model.training


def test_one_process_trains_where_the_model_is(monkeypatch):
    # As on a machine with an accelerator, for a model that was asked to stay on the processor.
    monkeypatch.setattr("accelerate.Accelerator.device", property(lambda self: torch.device("meta")))
    rows, y = numeric()
    model = Logistic(3)
    train(model, rows, y, Plan(max_epochs=1), valid=(rows, y))
    assert model.layer.weight.device.type == "cpu"


def test_sparse_gradients_train_too():
    table, labels = impressions(3000)
    schema = Schema.fit([table], kinds=KINDS)
    rows, y = schema.encode(table), torch.from_numpy(labels)
    scores = []
    for sparse in (False, True):
        torch.manual_seed(0)
        embedding = FieldEmbedding(schema, 8, table=lambda s, d, sparse=sparse: FullTable(s, d, sparse=sparse))
        model = ClickModel(embedding, FM())
        train(model, rows[:2000], y[:2000], Plan(learning_rate=0.01, batch_size=256, max_epochs=20))
        scores.append(auc(labels[2000:], predict(model, rows[2000:])))
    assert min(scores) > 0.7
    # Every value occurs in nearly every batch here, so lazy and plain Adam do nearly the same.
    assert abs(scores[0] - scores[1]) < 0.02


@pytest.mark.parametrize(("rows", "size"), [(1, 4), (30, 7), (40, 7), (41, 7), (1003, 7), (1003, 64)])
def test_shuffling_gives_each_row_once_and_mixes_blocks(rows, size, monkeypatch):
    monkeypatch.setattr(training, "BLOCK", 10)
    monkeypatch.setattr(training, "MIXED", 40)
    generator = torch.Generator().manual_seed(0)
    first, second = (list(shuffled(rows, size, generator)) for _ in range(2))
    assert torch.cat(first).sort().values.tolist() == list(range(rows))
    assert [len(batch) for batch in first[:-1]] == [size] * (len(first) - 1)
    assert 1 <= len(first[-1]) <= size
    if rows > 100:
        assert not torch.equal(torch.cat(first), torch.cat(second))
        # Forty rows that follow each other are from at most four blocks and their left-overs.
        assert all(len(torch.cat(first)[i : i + 40].div(10, rounding_mode="floor").unique()) <= 8 for i in (0, 40, 400))


def test_a_penalty_is_added():
    class Pulled(Logistic):
        def penalty(self):
            return 100 * self.layer.weight.square().sum()

    rows, y = numeric()
    model = Pulled(3)
    train(model, rows, y, Plan(learning_rate=0.02, batch_size=100, max_epochs=60))
    assert model.layer.weight.abs().max() < 0.05


def test_a_loss_that_is_not_finite_is_told():
    rows, y = numeric(20)
    rows.numbers[0] = torch.nan
    with pytest.raises(ValueError, match="the loss of epoch 1 is nan"):
        train(Logistic(3), rows, y, Plan())
    with pytest.raises(ValueError, match="no rows"):
        train(Logistic(3), rows[:0], y[:0], Plan())


@pytest.mark.parametrize(
    "options", [{"learning_rate": 0.0}, {"weight_decay": -1.0}, {"batch_size": 0}, {"patience": 0}, {"max_epochs": 2.5}]
)
def test_bad_plans_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Plan(**options)


@pytest.mark.slow
def test_two_processes_do_what_one_does():
    (alone, one), ((first, two), (second, _)) = train_share(), run_processes(train_share, 2)
    assert (one, two) == (1, 2)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        # Halves of a batch are averaged in another order.
        torch.testing.assert_close(first[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_processes_end_with_the_same_running_averages():
    # With others of its own a process would stop at another epoch, and the rest wait for it.
    (first, _), (second, _) = run_processes(train_share, 2, Normalised)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["norm.running_mean"].abs().max() > 0


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_devices_that_are_not_here_are_named(name):
    with pytest.raises(ValueError, match=f"device '{name}' cannot be used here"):
        chosen_device(name)


def test_drawing_by_a_seed_leaves_the_generator_alone_and_threads_wait_for_one_another():
    def drawn(_):
        with seeded(3):
            return [torch.rand(1).item() for _ in range(200)]

    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(drawn, range(40)))
    assert found == found[:1] * 40
    assert torch.equal(before, torch.get_rng_state())
