"""What every compressed table must do: answer as it will serve, keep to its budget, count honestly, train and load."""

import pytest
import torch
from clicks import impressions

from workingpapers.errors import UserError
from workingpapers.methods.recommenders.baselines import MLPClickClassifier
from workingpapers.methods.tables.common import FullTable, make_table
from workingpapers.methods.tables.compressed import FAMILIES, FIND_THEIR_SIZE, METHODS, options_at
from workingpapers.methods.tables.compressed_parts import SettlingTable

SIZES, DIM = [400, 1500, 30, 3], 16
OPTIONS = {"dhe": {"hashes": 32, "width": 8}, "dedup": {"block": 5, "agreement": 0.1}}  # small enough for these tests


def trained(name, sizes=(30, 50, 4), dim=8, **options):
    """A table after a few steps towards random targets, settled and trained on where its method says so."""
    torch.manual_seed(0)
    table = make_table(name, list(sizes), dim, **(OPTIONS.get(name, {}) | options))
    targets = torch.randn(sum(sizes), dim)
    optimizer = torch.optim.Adam([{"params": [p]} for p in table.parameters()], lr=0.05)
    for phase in range(2):
        for _ in range(30):
            ids = torch.randint(sum(sizes), (64,))
            loss = (table(ids) - targets[ids]).square().mean() + table.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            table.after_step()
        if phase == 1 or not isinstance(table, SettlingTable):
            break
        table.settle()
    return table.eval()


@pytest.mark.parametrize("name", METHODS)
def test_the_served_table_answers_as_the_trained_one_and_counts_its_bytes(name):
    table = trained(name)
    ids = torch.arange(84)
    served = table.served()
    torch.testing.assert_close(served(ids), table(ids), atol=1e-6, rtol=1e-5)
    for kind, held in ((table, table.training_bytes()), (served, table.serving_bytes())):
        tensors = {t.data_ptr(): t for t in (*kind.parameters(), *kind.buffers()) if t is not kind.offsets}
        assert held == sum(t.nbytes for t in tensors.values() if t.numel())


@pytest.mark.parametrize("name", METHODS)
def test_learns(name):
    table = trained(name)
    torch.manual_seed(0)
    start = make_table(name, [30, 50, 4], 8, **OPTIONS.get(name, {})).eval()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(84, (500,), generator=generator)
    torch.manual_seed(0)
    make_table(name, [30, 50, 4], 8, **OPTIONS.get(name, {}))
    targets = torch.randn(84, 8)
    # Random targets leave little to share, so some methods come only a little nearer.
    before, after = ((t(ids) - targets[ids]).square().mean() for t in (start, table))
    assert after < before * 0.99


@pytest.mark.parametrize("name", METHODS)
def test_ids_may_have_any_shape_and_an_answer_depends_on_the_id_alone(name):
    torch.manual_seed(0)
    table = make_table(name, [5, 30, 1, 9], 6, **OPTIONS.get(name, {}))
    for training in (True, False):
        table.train(training)
        for shape in ((), (0,), (1,), (3,), (2, 0), (2, 3), (1, 2, 3)):
            out = table(torch.randint(45, shape))
            assert out.shape == (*shape, 6)
            assert torch.isfinite(out).all()
    every, ids = table(torch.arange(45)), torch.randint(45, (2, 3))
    torch.testing.assert_close(table(ids), every[ids])
    served = table.served()
    assert served(ids[:, :0]).shape == (2, 0, 6)
    torch.testing.assert_close(served(ids[0, 0]), every[ids[0, 0]])


FINE = {
    "hash",
    "robe",
    "dhe",
    "adaptive",
    "dedup",
    "deeplight",
    "autosrh",
}  # the others grow by steps
LEAST = {"quantized": 0.26, "alpt": 0.32, "dhe": 0.17, "mgqe": 0.15, "deeplight": 0.07, "autosrh": 0.07, "tt": 0.01}


@pytest.mark.parametrize("ratio", [0.5, 0.25, 0.12])
@pytest.mark.parametrize("name", [m for m in METHODS if m not in FIND_THEIR_SIZE])
def test_budgets_are_kept_and_used(name, ratio):
    full = FullTable(SIZES, DIM).training_bytes()
    if ratio < LEAST.get(name, 0):
        with pytest.raises(ValueError, match=f"cannot keep to ratio {ratio}"):
            make_table(name, SIZES, DIM, **options_at(name, SIZES, DIM, ratio))
        return
    options = {"block": 10, "agreement": 0.01} if name == "dedup" else {}
    table = make_table(name, SIZES, DIM, **options_at(name, SIZES, DIM, ratio), **options)
    if isinstance(table, SettlingTable):
        table.settle()
    assert table.serving_bytes() <= ratio * full
    assert name not in FINE or table.serving_bytes() > 0.9 * ratio * full


def test_a_budget_out_of_reach_names_the_least():
    for name, options in {"qr": {}, "tt": {}, "mixed-dim": {}, "dhe": {}, "deeplight": {}, "adaptive": {}}.items():
        with pytest.raises(ValueError, match=r"cannot keep to ratio 0\.0001: (the smallest|no ratio saves)"):
            make_table(name, SIZES, DIM, ratio=0.0001, **options)
    for name in ("quantized", "alpt", "dpq", "mgqe"):
        with pytest.raises(ValueError, match=f"{name} cannot keep to ratio 0.01: the smallest ratio"):
            options_at(name, SIZES, DIM, 0.01)
    for ratio in (0, -1, 1.5):
        with pytest.raises(ValueError, match="it must be above 0 and at most 1"):
            make_table("hash", SIZES, DIM, ratio=ratio)


def test_names_of_the_map():
    assert len(METHODS) == len(set(METHODS)) == 16
    assert sum(map(len, FAMILIES.values())) == 16
    with pytest.raises(UserError, match=r"Unknown compressed table 'rob'\. Did you mean 'robe'"):
        options_at("rob", SIZES, DIM, 0.5)
    with pytest.raises(UserError, match="'pep' finds its own size"):
        options_at("pep", SIZES, DIM, 0.5)


@pytest.fixture(scope="module")
def data():
    return impressions(600), impressions(100, seed=1)[0]


def test_tables_are_told_of_every_step(data):
    (table, y), _ = data
    options = {"table": "autodim", "table_options": {"anneal": 0.01}, "max_epochs": 2, "batch_size": 100}
    model = MLPClickClassifier(**options, validation=0, random_state=0).fit(table, y)
    # Twelve steps while searching, and as many once the widths are fixed.
    assert model.model_.embedding.table.temperature == pytest.approx(1 - 24 * 0.01)
