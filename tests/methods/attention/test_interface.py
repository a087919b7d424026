"""Models that run an attention function of the package are copied, pickled and loaded, in another process too."""

import copy
import io
import subprocess
import sys
from functools import partial

import pytest
import torch
from tinymodels import tiny, tokens

from workingpapers.methods.attention import common, hip, hyper, lm_infinite, minference, ring, rope_scaling, softplus

APPLY = {
    "hip": partial(hip.apply, hip=hip.HiPAttention(6, 4, 2, window=3, sinks=2), dense_layers=1),
    "hyper-attention": partial(hyper.apply_hyper_attention, hyper=hyper.HyperAttention(3, 4, 3, min_seq_len=4)),
    "lm-infinite": partial(lm_infinite.apply, n_local=12, n_global=3),
    "minference": lambda model: minference.apply(model, minference.everywhere(model, minference.VerticalSlash(3, 2))),
    "ring": ring.apply,
    "softplus-attention": softplus.apply_softplus_attention,
    "giraffe": partial(rope_scaling.apply, basis=rope_scaling.Basis(factor=4), randomize=True),
}
LOAD = """
import sys, torch
from pathlib import Path

for file in Path(sys.argv[1]).glob("*.model"):
    model, ids = torch.load(file, weights_only=False)
    with torch.no_grad():
        torch.save(model(ids, use_cache=False).logits, file.with_suffix(".logits"))
"""


def logits(model, ids):
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def restored(model, name):
    return (rope_scaling if name == "giraffe" else common).restore(model)


def pickled(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("name", APPLY)
def test_copies_run_and_are_restored_on_their_own(name, copied):
    model, ids = tiny(), tokens(2, 40)
    plain, expected = logits(model, ids), logits(APPLY[name](model), ids)
    twin = copied(model)
    assert torch.equal(logits(twin, ids), expected)
    assert torch.equal(logits(restored(twin, name), ids), plain)
    assert torch.equal(logits(model, ids), expected)
    assert torch.equal(logits(APPLY[name](twin), ids), expected)
    assert torch.equal(logits(restored(model, name), ids), plain)


def test_another_process_loads_what_was_saved(tmp_path):
    ids, expected = tokens(2, 40), {}
    for name, apply in APPLY.items():
        model = apply(tiny())
        expected[name] = logits(model, ids)
        torch.save((model, ids), tmp_path / f"{name}.model")
    done = subprocess.run([sys.executable, "-c", LOAD, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in APPLY:
        # Kernels may depend on how many threads there are, and sums of float32 on them.
        torch.testing.assert_close(torch.load(tmp_path / f"{name}.logits"), expected[name], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_copy_decodes_with_what_it_found_itself():
    model, ids = APPLY["hip"](tiny(), dense_layers=0), tokens(1, 40)
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)
    twin, found = copy.deepcopy(model), []
    search = hip.HiPAttention.search
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hip.HiPAttention, "search", lambda *args: found.append(1) or search(*args))
        assert torch.equal(twin.generate(ids, max_new_tokens=6, do_sample=False), expected)
    assert len(found) == 2 * (1 + 1)  # of two layers: the prompt's, and one for five tokens


def test_under_autocast_inputs_are_rounded_as_those_of_torch_and_sums_are_not():
    def attention(q, k, v, *, scale, **kwargs):
        assert not torch.is_autocast_enabled("cpu")
        assert q.dtype == k.dtype == v.dtype == torch.bfloat16
        return common.dense_attention(q, k, v, scale=scale)

    model, ids = tiny(), tokens(2, 40)
    with torch.autocast("cpu", torch.bfloat16):
        expected = logits(model, ids)  # rotated queries and keys are float32, values bfloat16
        ours = logits(common.apply(model, "dense", attention), ids)
    torch.testing.assert_close(ours, expected, atol=0.01, rtol=0.01)  # bfloat16: 8 bits of logits of about 0.5


@pytest.mark.parametrize("name", APPLY)
def test_every_method_runs_under_autocast(name):
    model, ids = APPLY[name](tiny()), tokens(2, 40)
    with torch.autocast("cpu", torch.bfloat16):
        assert logits(model, ids).isfinite().all()


def test_a_compiled_model_searches_as_it_does_otherwise():
    model, ids = APPLY["minference"](tiny()), tokens(2, 40)
    torch.compiler.reset()
    with torch.no_grad():
        found = torch.compile(model, backend="eager")(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    torch.testing.assert_close(found, logits(model, ids), atol=1e-5, rtol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["lm-infinite", "ring"])
@torch.no_grad()
def test_nothing_is_prepared_for_another_attention_that_was_set_since(name):
    model, ids, options = tiny(attn_implementation="eager"), tokens(2, 40), {"max_new_tokens": 6, "do_sample": False}
    expected = model.generate(ids, **options)
    APPLY[name](model).set_attn_implementation("eager")
    assert torch.equal(model.generate(ids, **options), expected)


@pytest.mark.parametrize("name", ["hip", "lm-infinite", "ring"])
def test_models_that_hand_no_arguments_on_are_refused(name):
    model = APPLY[name](tiny("Nemotron"))
    with pytest.raises(ValueError, match="does not run in NemotronAttention, whose model does not hand arguments"):
        logits(model, tokens(2, 40))


@torch.no_grad()
def test_the_model_inside_a_wrapper_is_restored():
    model, ids = tiny(), tokens(1, 6)
    plain = logits(model, ids)
    wrapper = torch.compile(APPLY["softplus-attention"](model))
    with pytest.raises(ValueError, match="this OptimizedModule; restore the model inside it"):
        common.restore(wrapper)
    assert torch.equal(logits(common.restore(model), ids), plain)
