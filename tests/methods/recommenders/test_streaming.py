"""Parquet files are trained on as tables are, whatever their parts, and bad ones are named."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from clicks import KINDS, impressions
from pyarrow import parquet

from workingpapers.methods.recommenders import streaming
from workingpapers.methods.recommenders.baselines import FMClassifier, MLPClickClassifier
from workingpapers.methods.recommenders.din import DINClassifier
from workingpapers.methods.recommenders.metrics import auc
from workingpapers.methods.recommenders.schema import Schema
from workingpapers.methods.recommenders.streaming import StoredRows, parquet_batches

PLAN = {"kinds": KINDS, "learning_rate": 0.01, "batch_size": 256, "max_epochs": 6, "random_state": 0}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Files come in four parts here."""
    monkeypatch.setattr(streaming, "ROWS", 1000)


@pytest.fixture
def file(tmp_path):
    table, y = impressions(4000)
    path = tmp_path / "clicks.parquet"
    table.assign(clicked=np.where(y, "yes", "no")).to_parquet(path)
    return path


def test_without_validation_a_file_trains_the_very_model_of_its_table(file):
    table, y = impressions(4000)
    (held, _), plan = impressions(500, seed=1), PLAN | {"validation": 0, "max_epochs": 2}
    streamed, plain = MLPClickClassifier(**plan).fit(file, "clicked"), MLPClickClassifier(**plan).fit(table, y)
    assert streamed.schema_.to_json()["fields"][:3] == plain.schema_.to_json()["fields"][:3]
    # Means and deviations are merged from parts, in another order of addition.
    np.testing.assert_allclose(streamed.decision_function(held), plain.decision_function(held), atol=1e-4)
    assert streamed.classes_.tolist() == ["no", "yes"]
    assert streamed.feature_names_in_.tolist() == table.columns.tolist()


def test_integers_with_gaps_stay_identifiers(tmp_path):
    path, clicked = tmp_path / "clicks.parquet", np.arange(400) % 2
    ids = [None, *(2**60 + clicked[1:]).tolist()]  # as floats they would be one value
    table = pa.table({"id": ids, "clicked": clicked})
    parquet.write_table(table, path)
    model = FMClassifier(max_epochs=20, learning_rate=0.05, batch_size=64, random_state=0).fit(path, "clicked")
    assert model.schema_.field("id").values == (str(2**60 + 1), str(2**60))
    assert (model.predict(path) == clicked)[1:].all()
    again = FMClassifier(max_epochs=1).fit(table.select(["id"]), table["clicked"])
    assert again.schema_ == model.schema_


def test_with_validation_it_stops_early_and_predicts_from_files(file, tmp_path):
    held, held_y = impressions(2500, seed=1)
    model = FMClassifier(**PLAN | {"max_epochs": 15}).fit(str(file), "clicked")
    assert model.history_.auc
    held.to_parquet(tmp_path / "held.parquet")
    scores = model.decision_function(tmp_path / "held.parquet")
    np.testing.assert_allclose(scores, model.decision_function(held), rtol=1e-5, atol=1e-6)
    assert auc(held_y, scores) > 0.72  # of a fit in memory 0.75 or more
    assert set(model.predict(tmp_path / "held.parquet")) == {"no", "yes"}


def test_reading_shows_how_far_it_is(file, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws bars on terminals only
    monkeypatch.setattr("workingpapers.progress.PATIENCE", -1.0)
    assert sum(map(len, parquet_batches(file))) > 0
    assert f"reading {file.name}" in capsys.readouterr().err


def test_a_folder_of_files_is_one_table(file, tmp_path):
    whole, folder = pd.read_parquet(file), tmp_path / "parts"
    folder.mkdir()
    for i in range(3):
        whole[i * 1400 : (i + 1) * 1400].to_parquet(folder / f"{i}.parquet")
    pd.testing.assert_frame_equal(pd.concat(parquet_batches(folder), ignore_index=True), whole)


def test_stored_rows_come_back(tmp_path):
    table, y = impressions(300)
    table["past"] = [list(range(i % 5)) for i in range(300)]
    schema = Schema.fit([table], kinds=KINDS | {"past": "sequence of item"}, length=3)
    rows, stored = schema.encode(table), StoredRows(tmp_path / "rows", schema)
    for start in range(0, 300, 70):
        part = slice(start, start + 70)
        stored.write(rows[part], y[part])
    found, labels = stored.read()
    assert torch.equal(found.ids, rows.ids)
    assert torch.equal(found.numbers, rows.numbers)
    assert found.lists.keys() == rows.lists.keys()
    assert all(torch.equal(found.lists[name], rows.lists[name]) for name in rows.lists)
    assert labels.tolist() == y.tolist()


def test_files_are_closed_when_encoding_fails(file, tmp_path, monkeypatch):
    opened = []

    class Watched(StoredRows):
        def __init__(self, *given):
            super().__init__(*given)
            opened.append(self)

    def fail(self, table):
        raise ValueError("odd values")

    schema = Schema.fit([impressions(100)[0]], kinds=KINDS)
    monkeypatch.setattr(streaming, "StoredRows", Watched)
    monkeypatch.setattr(Schema, "encode", fail)
    with pytest.raises(ValueError, match="odd values"):
        streaming.store(file, "clicked", tmp_path / "rows", schema, np.array(["no", "yes"]), 0.1, 0)
    assert len(opened) == 2
    assert all(held.closed for stored in opened for held in stored.files.values())


def test_histories_and_counts_work_on_stored_rows(tmp_path):
    table, y = impressions(600)
    table["past"] = [list(range(i % 5)) for i in range(600)]
    table.assign(clicked=y).to_parquet(tmp_path / "log.parquet")
    model = DINClassifier(kinds=KINDS | {"past": "sequence of item"}, regularisation=0.01, max_epochs=1)
    assert np.isfinite(model.fit(tmp_path / "log.parquet", "clicked").decision_function(table)).all()


def test_bad_files_are_named(file, tmp_path):
    model = FMClassifier(**PLAN)
    data = file.read_bytes()
    cut, damaged = tmp_path / "cut.parquet", tmp_path / "damaged.parquet"
    cut.write_bytes(data[: len(data) // 2])
    damaged.write_bytes(data[:100] + bytes(len(data) // 2) + data[100 + len(data) // 2 :])
    for path in (cut, damaged):
        with pytest.raises(ValueError, match=f"{path.name} cannot be read, it may be cut off or damaged"):
            model.fit(path, "clicked")
    with pytest.raises(ValueError, match="cannot be looked at: File name too long"):
        model.fit("x" * 300 + ".parquet", "clicked")
    with pytest.raises(ValueError, match=r"gone.parquet is neither"):
        model.fit(tmp_path / "gone.parquet", "clicked")
    with pytest.raises(ValueError, match="there is no column 'click' for the labels; there are"):
        model.fit(file, "click")
    with pytest.raises(ValueError, match="y is the name of the column of labels; got ndarray"):
        model.fit(file, np.zeros(3))
    table, y = impressions(2500)
    table.assign(clicked=pd.Series(y.astype(float)).where(pd.Series(range(2500)) != 1003)).to_parquet(cut)
    with pytest.raises(ValueError, match="column 'clicked' has no label in row 1003"):
        model.fit(cut, "clicked")
    table.assign(clicked=y, number=np.where(np.arange(2500) == 1003, np.inf, 0.5)).to_parquet(cut)
    fitted = FMClassifier(**PLAN | {"max_epochs": 1}).fit(file, "clicked")
    for ask in (lambda: model.fit(cut, "clicked"), lambda: fitted.predict(cut)):  # in the second part of the file
        with pytest.raises(ValueError, match="column 'number' holds infinite numbers, in row 1003 first"):
            ask()
    parquet.write_table(pa.table([[1, 2], [0, 1], [0, 1]], names=["a", "clicked", "clicked"]), cut)
    with pytest.raises(ValueError, match=r"columns \['clicked'\] occur more than once"):
        model.fit(cut, "clicked")
    table.assign(clicked=y)[["clicked"]].to_parquet(cut)
    with pytest.raises(ValueError, match="the table has no columns to predict from"):
        model.set_params(kinds=None).fit(cut, "clicked")
    model = FMClassifier(**PLAN)
    table.assign(clicked=7).to_parquet(cut)
    with pytest.raises(ValueError, match="needs two classes; got 1 class"):
        model.fit(cut, "clicked")
    table[:0].assign(clicked=1).to_parquet(cut)
    with pytest.raises(ValueError, match=r"cut.parquet holds no rows"):
        model.fit(cut, "clicked")


def test_labels_that_are_none_are_refused_as_in_a_table(tmp_path):
    table, y = impressions(200)
    path = tmp_path / "t.parquet"
    dates = pd.to_datetime("2024-01-01") + pd.to_timedelta(y, unit="D")
    lists = [[int(v)] for v in y]
    refused = (
        (y + 0.5, "continuous"),
        (lists, "the labels are not single"),
        (dates, "text, or all whole numbers or bool"),
    )
    for labels, message in refused:
        table.assign(clicked=labels).to_parquet(path)
        with pytest.raises(ValueError, match=message):
            FMClassifier(**PLAN).fit(path, "clicked")
