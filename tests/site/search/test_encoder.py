"""The exported encoder gives the model's vectors, without torch."""

import subprocess
import sys

import numpy as np
import pytest

from workingpapers.errors import UserError
from workingpapers.site.search import encoder
from workingpapers.site.search.encoder import DIMENSIONS, Encoder, digest, embedded_text, load_encoder, make_encoder


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path))
    assert encoder.encoder_folder().parent.parent == tmp_path
    assert load_encoder() is None


def test_a_folder_that_is_no_encoder_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        Encoder(tmp_path)


def test_a_model_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path))
    hidden = "import sys; sys.modules['all_minilm_l6_v2'] = None; import runpy; "
    run = "runpy.run_module('workingpapers.site.search.export', run_name='__main__')"
    monkeypatch.setattr(encoder, "_COMMAND", [sys.executable, "-c", hidden + run])
    with pytest.raises(UserError, match=r"not installed: pip install 'workingpapers\[packaged\]'"):
        make_encoder()
    assert not encoder.encoder_folder().exists()


def test_digests_differ_where_texts_do():
    assert embedded_text("A", "") == "A"
    assert digest("a") == digest("a") != digest("b")


@pytest.mark.slow
def test_vectors_are_the_models(tmp_path, monkeypatch):
    pytest.importorskip("all_minilm_l6_v2")
    from workingpapers.site.search.export import SENTENCES, naive_vectors, torch_model

    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "cache"))
    made = make_encoder()
    found = made.encode(SENTENCES)
    wanted = naive_vectors(torch_model(tmp_path), tmp_path)
    # int8 weights and activations: the cosines are 0.989 to 0.994; unrelated sentences are below 0.6 in this model.
    assert (np.sum(found * wanted, axis=1) > 0.985).all()
    # The scale of the activations is that of the batch, so a text alone is rounded otherwise; as well, though.
    alone = np.concatenate([made.encode([sentence]) for sentence in SENTENCES])
    assert (np.sum(alone * wanted, axis=1) > 0.985).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert made.encode([]).shape == (0, DIMENSIONS)
    long = "word " * 10_000
    np.testing.assert_allclose(made.encode([long]), made.encode([long + "more"]))  # only the first tokens count
    command = "import sys, workingpapers.site.search.encoder as it; it.load_encoder().encode(['x'])"
    check = f"{command}; assert not {{'torch', 'transformers'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", check], check=True)
