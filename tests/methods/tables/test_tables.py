"""Every table under a click model: from training to a file, back, and into an export that holds what is counted."""

import numpy as np
import pytest
from clicks import KINDS, impressions
from safetensors.torch import load_file

from workingpapers.methods.recommenders.baselines import MLPClickClassifier
from workingpapers.methods.tables.common import TABLES

OPTIONS = {  # small enough for these tests
    "autodim": {"anneal": 0.01},
    "dedup": {"block": 5, "agreement": 0.1},
    "dhe": {"hashes": 32, "width": 8},
    "optembed": {"rounds": 2},
    "optfs": {"search_epochs": 2, "learning_rate": 0.03},
}
TABLE = "embedding.table."


@pytest.fixture(scope="module")
def data():
    return *impressions(400), impressions(60, seed=1)[0]


@pytest.mark.parametrize("name", TABLES)
def test_trained_saved_loaded_exported_and_counted(name, data, tmp_path):
    rows, y, held = data
    options = {"kinds": KINDS, "dim": 8, "max_epochs": 2, "batch_size": 128, "learning_rate": 0.01, "hidden": (8,)}
    model = MLPClickClassifier(table=name, table_options=OPTIONS.get(name), random_state=0, **options).fit(rows, y)
    table = model.model_.embedding.table
    scores = model.predict_proba(held)[:, 1]

    model.save(tmp_path)
    again = MLPClickClassifier.load(tmp_path)
    np.testing.assert_array_equal(again.predict_proba(held)[:, 1], scores)
    # What is made from the sizes alone is held, and counted, but not written.
    made = {k for k, _ in table.named_buffers()} - set(table.state_dict()) - {"offsets"}
    written = {k: x for k, x in load_file(tmp_path / "model.safetensors").items() if k.startswith(TABLE)}
    constants = sum(table.get_buffer(k).nbytes for k in made)
    assert table.training_bytes() == sum(x.nbytes for x in written.values()) + constants
    assert constants <= 4 * 8 * len(table.sizes)

    program = again.export(held)
    encoded = again.schema_.encode(held)
    found = program.module()(encoded.ids, encoded.numbers, *encoded.lists.values())
    np.testing.assert_allclose(found.detach().numpy(), scores, atol=1e-6)  # an export may fuse operations
    held_there = {k: x for k, x in {**program.state_dict, **program.constants}.items() if TABLE in k}
    del held_there[f"model.{TABLE}offsets"]
    assert again.model_.embedding.table.serving_bytes() == sum(x.nbytes for x in held_there.values())
    assert again.model_.embedding.table.training_bytes() == table.training_bytes()  # an export leaves the model alone
