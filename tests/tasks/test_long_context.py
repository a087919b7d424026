"""Long context from end to end at tiny size, its scores by hand, its baselines against definitions, bad input."""

import dataclasses
import math
import subprocess
import sys

import pytest
import tinyreader
import torch
from tinymodels import tiny, tokens
from torch.nn import functional as F

from workingpapers.data.language_models import load_language_model
from workingpapers.data.texts import Text
from workingpapers.errors import UserError, UserRemark
from workingpapers.methods.attention import common
from workingpapers.methods.attention.common import causal_mask, dense_attention
from workingpapers.methods.attention.lm_infinite import lambda_mask
from workingpapers.runs.execute import try_
from workingpapers.tasks.long_context import byte_model, material, packing, passkey, scoring, sharded
from workingpapers.tasks.long_context.material import Given, Problem, Reader, causal_scores, largest
from workingpapers.tasks.protocol import Conditions, Context, load_task

TASK = load_task("long-context")
FINISHED = ("standard", "equal-budget", "passkey")
BYTES = ("extrapolation", "longer-finetuning")
pytestmark = pytest.mark.filterwarnings("ignore:Windows have")  # the tiny reader takes 240 tokens


@pytest.fixture(scope="module", autouse=True)
def places(tmp_path_factory):
    """One cache for the module, with the text in it: a byte model trained once serves every test."""
    root = tmp_path_factory.mktemp("cache")
    (root / "own.txt").write_text(tinyreader.lines())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKINGPAPERS_CACHE", str(root))
        yield root


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Budgets of two steps of training, for what runs in this process."""
    budgets = {"extrapolation": (64, 2), "longer-finetuning": (64, 2), "packing": (2, 100), "passkey": (1, 2)}
    budgets["sharded"] = (1, 512)
    for name, (train, test) in budgets.items():
        quick = dataclasses.replace(TASK.settings[name].budgets["quick"], train=train, test=test)
        monkeypatch.setitem(TASK.settings, name, dataclasses.replace(TASK.settings[name], budgets={"quick": quick}))


def conditions(places, setting, data=None):
    model = "tinyreader:make" if TASK.settings[setting].model else ""
    return Conditions("long-context", setting, data or str(places / "own.txt"), model)


def problem(places, setting, entry, seed=0):
    where, chosen = conditions(places, setting), TASK.entries[entry]
    load_language_model.cache_clear()  # entries change the model that they get
    prepared = TASK.settings[setting].prepare(where, [chosen])
    return TASK.settings[setting].load(where, chosen, seed, prepared)


def run(places, setting, entry, seed=0):
    """Do what the runner does, in this process."""
    found, context = problem(places, setting, entry, seed), Context(seed, TASK.settings[setting].budgets["quick"])
    metrics = TASK.settings[setting].measure(lambda given: TASK.entries[entry].fit(given, context), found, context)
    assert set(metrics) == {metric.name for metric in TASK.settings[setting].metrics}
    assert all(math.isfinite(value) for value in metrics.values())
    return metrics, context


def names(setting):
    return [entry.name for entry in TASK.select(setting)]


def given(model, length, share=None, trained=16, seed=0):
    return Given(model, tokens(1, length)[0], length, trained, share, seed)


# Every entry of every setting


@pytest.mark.parametrize("name", names("standard"))
def test_reading(places, name):
    metrics, context = run(places, "standard", name)
    # Random weights know nothing of the text; their scores are small.
    assert abs(metrics["nll"] - math.log(256)) < 1
    assert metrics["prefill-seconds"] > 0 < metrics["decode-seconds"]
    if name in ("dense", "oracle-keys"):
        assert metrics["computed-scores"] == 100
    else:  # MInference is sized for lines that lie evenly, and its random heads look anywhere
        assert 5 < metrics["computed-scores"] <= (40 if name == "minference" else 25)
    assert [x for x, _ in context.curves["nll by position"]] == [64, 128, 231]


@pytest.mark.parametrize("name", names("equal-budget"))
def test_attention_at_equal_budget(places, name):
    metrics, _ = run(places, "equal-budget", name)
    assert 0 < metrics["recovered-mass"] < 100
    assert metrics["output-error"] > 0
    assert 5 < metrics["kept-scores"] <= (40 if "minference" in name else 25)


def test_the_largest_scores_recover_most(places):
    found = {name: run(places, "equal-budget", name)[0] for name in ("oracle-keys", "random-keys", "sliding-window")}
    assert found["oracle-keys"]["recovered-mass"] > 1.2 * found["random-keys"]["recovered-mass"]
    assert found["oracle-keys"]["recovered-mass"] > 1.2 * found["sliding-window"]["recovered-mass"]


@pytest.mark.parametrize("name", names("passkey"))
def test_passkeys(places, name):
    metrics, context = run(places, "passkey", name)
    assert metrics["accuracy"] == 0  # a random model says nothing of use
    assert [x for x, _ in context.curves["accuracy by depth"]] == [0.1, 0.3]


@pytest.mark.parametrize("name", names("extrapolation"))
def test_extrapolation(places, name):
    metrics, context = run(places, "extrapolation", name)
    assert [x for x, _ in context.curves["nll by position"]] == [64, 128, 256, 512, 1024]
    if name in ("truncated", "sliding-window", "streaming-llm", "lm-infinite"):
        # 1e-5: sums in float32, taken in another order.
        assert metrics["nll-near"] == pytest.approx(run(places, "extrapolation", "dense")[0]["nll-near"], abs=1e-5)
    if name.startswith("softplus"):
        assert "training loss by step" in context.curves


@pytest.mark.parametrize("name", names("longer-finetuning"))
def test_longer_finetuning(places, name):
    metrics, context = run(places, "longer-finetuning", name)
    assert metrics["nll-near"] < math.log(256)
    assert ("training loss by step" in context.curves) == (name != "not-finetuned")


@pytest.mark.parametrize("name", names("packing"))
def test_packing(places, name):
    metrics, _ = run(places, "packing", name)
    assert 4 < metrics["nll-short"] < math.log(256) + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", names("sharded"))
def test_sharded(places, name):
    metrics, _ = run(places, "sharded", name)
    assert metrics["output-error"] < 1e-5  # float32
    assert metrics["seconds"] > 0 < metrics["peak-memory"]


@pytest.mark.slow
def test_a_model_and_a_file_of_ones_own_through_the_runner(places, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKINGPAPERS_STORE", str(tmp_path / "runs.sqlite"))
    board = try_("long-context", data=str(places / "own.txt"), model="tinyreader:make", seeds=1)
    rows = {row.entry: row for row in board.rows}
    assert set(rows) == set(names("standard"))
    assert not any(row.failures for row in board.rows)
    assert rows["hip-attention"].paper == "hip-attention"
    for one in board.runs:
        assert one.settings["budget"]["window"] == 2_048
        assert "Windows have 232 tokens, not 2,048: more do not fit into tinyreader:make." in one.settings["remarks"]


# The text


def test_what_is_held_back_is_never_given(places):
    for setting in ("standard", "extrapolation"):
        found = problem(places, setting, "dense")
        train = bytes(found.given.tokens.tolist()) if setting == "extrapolation" else None
        for row in found.windows.tolist():
            if train is None:
                decode = load_language_model("tinyreader:make").tokenizer.decode
                assert decode(row)[50:80] not in decode(found.given.tokens.tolist())
            else:
                assert bytes(row)[50:80] not in train


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_parts_are_the_whole_text_once(seed):
    text = tinyreader.lines(100)
    train, held = material.parts(text, seed)
    assert len(held) == len(text) // 5
    assert held + train in text + text  # the ring, opened at another place
    assert material.parts(text, seed) == (train, held)
    assert material.parts(text, seed + 1) != (train, held)


@pytest.mark.parametrize("setting", [*FINISHED, *BYTES])
def test_windows_are_those_of_the_budget_which_runs_record(places, setting, monkeypatch):
    monkeypatch.setattr(tinyreader, "LENGTH", 3_000)
    found = problem(places, setting, TASK.settings[setting].baseline)
    assert found.given.length == dataclasses.asdict(TASK.settings[setting].budgets["quick"])["window"]


@pytest.mark.parametrize(("setting", "length"), [("standard", 232), ("passkey", 228)])  # 8 to decode, 12 to answer
def test_windows_that_a_model_cuts_are_told(places, setting, length):
    with pytest.warns(UserRemark, match=rf"have {length} tokens, not [\d,]+: more do not fit into tinyreader:make\."):
        assert problem(places, setting, "dense").given.length == length


def test_passkeys_stand_where_they_should(places):
    found = problem(places, "passkey", "dense")
    for prompt in found.prompts:
        text = found.decode(prompt.tokens.tolist())
        assert len(prompt.tokens) == tinyreader.LENGTH - 12
        assert text.count(prompt.key) == 2
        assert text.endswith("The pass key is")
        assert abs(text.index(prompt.key) / len(text) - prompt.depth * 0.6) < 0.15  # the question takes the last part
    assert len({prompt.key for prompt in found.prompts}) == 2


def test_lines_that_training_has_are_not_held_back(places):
    found = packing.load(conditions(places, "packing"), 0)
    known = {bytes(line.tolist()) for line in found.given.lines}
    assert all(bytes(line.tolist()) not in known for line in found.held)
    assert all(sum(len(found.given.lines[i]) for i in row) <= packing.LENGTH for row in found.given.sequences)


@torch.no_grad()
@pytest.mark.parametrize("name", names("passkey"))
def test_answers_are_greedy_whatever_a_model_was_told_of_generating(places, name):
    found = problem(places, "passkey", name)
    model = TASK.entries[name].fit(found.given, Context(0, TASK.settings["passkey"].budgets["quick"])).model
    ids = found.prompts[0].tokens[None]
    plain = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), **plain)[0, ids.shape[1] :].tolist()
    model.generation_config.repetition_penalty = 5.0
    assert model.generate(ids, attention_mask=torch.ones_like(ids), **plain)[0, ids.shape[1] :].tolist() != expected
    assert passkey.answered(model, ids) == expected
    model.generation_config.eos_token_id = [expected[2], 255]
    assert passkey.answered(model, ids) == expected[: expected.index(expected[2])]


# Scores by hand


def test_losses_are_cross_entropies():
    logits, following = torch.randn(2, 300, 7), torch.randint(7, (2, 300))
    expected = -logits.log_softmax(-1).gather(-1, following[..., None])[..., 0]
    torch.testing.assert_close(scoring.losses(logits, following), expected)


def test_buckets_double():
    assert scoring.buckets(1024) == [(0, 64), (64, 128), (128, 256), (256, 512), (512, 1024)]
    assert scoring.buckets(100) == [(0, 64), (64, 100)]
    assert scoring.buckets(64) == [(0, 64)]


def exactly(q, k, v, *, scale, key_mask, module, **kwargs):
    return dense_attention(q, k, v, scale=scale)


def test_exact_attention_is_judged_exact():
    model = tiny()
    windows = tokens(1, 40)
    found = scoring.measure_attention(
        lambda given: Reader(common.apply(given.model, "exact", exactly)),
        Problem(given(model, 40), windows),
        Context(0, None),
    )
    assert found["output-error"] < 1e-3  # per cent, float32
    assert found["recovered-mass"] == pytest.approx(100, abs=1e-3)
    assert found["kept-scores"] == pytest.approx(100)


@pytest.mark.parametrize("window", [1, 5, 40])
def test_the_mass_of_a_window_of_equal_scores(window):
    """With queries of zero every key weighs the same: of row i, a window holds min(w, i + 1) / (i + 1)."""
    T = 40
    mask = lambda_mask(T, window, 0)

    def windowed(module, query, key, value, attention_mask, **kwargs):
        return dense_attention(query, key, value, mask=mask[None, None]).transpose(1, 2), None

    judge = scoring.Judge(windowed, {0})
    q, k, v = torch.zeros(1, 4, T, 8), torch.randn(1, 2, T, 8), torch.randn(1, 2, T, 8)
    layer = torch.nn.Module()
    layer.layer_idx = 0
    out, _ = judge(layer, q, k, v, None)
    torch.testing.assert_close(out, dense_attention(q, k, v).transpose(1, 2))
    rows = [min(window, i + 1) / (i + 1) for i in range(T)]
    assert judge.found["recovered-mass"][0] == pytest.approx(sum(rows) / T, rel=1e-5)
    assert judge.found["kept-scores"][0] == pytest.approx(mask.sum().item() / causal_scores(T), rel=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.25, 1.0])
def test_windows_fill_their_share(share):
    one = given(None, 100, share)
    window = one.window()
    assert lambda_mask(100, window, 0).sum() <= share * causal_scores(100)
    assert window == 100 or lambda_mask(100, window + 1, 0).sum() > share * causal_scores(100)
    assert lambda_mask(100, one.window(4), 4).sum() <= share * causal_scores(100)
    assert given(None, 100, None, trained=7).window(4) == 7
    with pytest.raises(UserError, match="too short to be read with 10%"):
        largest(lambda size: 1000, given(None, 10, 0.1))


def test_seconds_and_scores_of_reading_by_hand(monkeypatch):
    """A model that takes one second a pass and knows the next token with probability 1/2."""

    class Half(torch.nn.Module):
        def forward(self, ids, cache=None, use_cache=True):
            following = (ids + 1) % 4
            logits = F.one_hot(following, 4) * math.log(3.0)  # 3 / (3 + 1 + 1 + 1)
            return type("Out", (), {"logits": logits, "cache": None})()

    clock = iter(range(1000))
    monkeypatch.setattr(scoring.time, "perf_counter", lambda: float(next(clock)))
    windows = torch.arange(80).repeat(2, 1) % 4
    reader = Reader(Half(), lambda length: causal_scores(length) / 4)
    found = scoring.measure_reading(lambda given: reader, Problem(given(None, 72), windows), Context(0, None))
    assert found["nll"] == pytest.approx(math.log(2))
    assert (found["computed-scores"], found["prefill-seconds"], found["decode-seconds"]) == (25, 1, 1)


# Baselines against definitions


def test_streaming_llm_is_the_model_on_first_and_last_tokens():
    """In a model of one layer, keys and values depend on nothing but their token and its place in the cache."""
    plain, ids = tiny(num_hidden_layers=1), tokens(1, 40)
    reader = TASK.entries["streaming-llm"].fit(given(tiny(num_hidden_layers=1), 40, trained=16), None)
    with torch.no_grad():
        found = reader.predict(ids)[0]
        for i in (0, 15, 16, 18, 19, 20, 39):
            kept = ids if i < 20 else torch.cat([ids[:, :4], ids[:, i - 15 : i + 1]], dim=1)
            kept = kept[:, : i + 1] if i < 20 else kept
            torch.testing.assert_close(found[i], plain(kept).logits[0, -1], rtol=1e-4, atol=1e-5)


def test_a_sliding_window_needs_no_rotations_of_llama_s_kind():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    for model in (tiny("Cohere"), tiny(rope_parameters=rope)):
        reader = TASK.entries["sliding-window"].fit(given(model, 64, share=0.5), None)
        assert reader.predict(tokens(1, 64)).isfinite().all()


def test_a_sliding_window_is_a_mask():
    ids, plain = tokens(1, 40), tiny()
    reader = TASK.entries["sliding-window"].fit(given(tiny(), 40, trained=16), None)
    mask = lambda_mask(40, 16, 0)

    def masked(q, k, v, *, scale, **kwargs):
        return dense_attention(q, k, v, scale=scale, mask=mask[None, None])

    with torch.no_grad():
        expected = common.apply(plain, "masked", masked)(ids).logits
        torch.testing.assert_close(reader.predict(ids), expected, rtol=1e-4, atol=1e-5)
    assert reader.entries(40) == mask.sum()


def test_truncated_reads_the_last_tokens_alone():
    model, ids = tiny(), tokens(2, 40)
    reader = TASK.entries["truncated"].fit(given(model, 40, trained=16), None)
    with torch.no_grad():
        found = reader.predict(ids)
        assert found.shape == (2, 40, 64)
        for i in (0, 15, 16, 39):
            expected = model(ids[:, max(0, i - 15) : i + 1]).logits[:, -1]
            torch.testing.assert_close(found[:, i], expected, rtol=1e-4, atol=1e-5)
    assert reader.entries(17) == 2 * causal_scores(16)


@pytest.mark.parametrize("name", ["oracle-keys", "random-keys"])
def test_chosen_keys_are_so_many_and_those(name):
    model = tiny()
    TASK.entries[name].fit(given(model, 40, trained=10), None)
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    function = ALL_ATTENTION_FUNCTIONS[model.config._attn_implementation]
    layer = common.attention_layers(model)[0]
    q, k = torch.randn(1, 4, 40, 8), torch.randn(1, 2, 40, 8)
    weights, again = (
        function(layer, q, k, torch.eye(40).expand(1, 2, 40, 40), None, scaling=1.0)[0].transpose(1, 2) for _ in "ab"
    )
    assert torch.equal(weights, again)
    kept = weights > 0
    assert torch.equal(kept.sum(-1)[0, 0], torch.arange(1, 41).clamp(max=10))
    scores = (q @ common.repeat_heads(k, 4).mT).masked_fill(~causal_mask(40, 40), -torch.inf)
    if name == "oracle-keys":
        least = scores.topk(10, dim=-1).values[..., -1:]
        assert torch.equal(kept, (scores >= least) & causal_mask(40, 40))
    else:
        assert kept[0, :, 20:].diagonal(20, 1, 2).all()  # its own key always, as one of the last two
        assert not torch.equal(kept[0, 0], kept[0, 1])
    expected = scores.masked_fill(~kept, -torch.inf).softmax(-1)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)


# The byte model


def test_a_byte_model_is_trained_once(places, monkeypatch):
    train = torch.randint(256, (5000,))
    first = byte_model.trained("text", train, 2, 0)
    monkeypatch.setattr(byte_model, "fit", lambda *args: pytest.fail("trained again"))
    again = byte_model.trained("text", train, 2, 0)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        byte_model.trained("text", train, 2, 1)


def test_a_need_that_nothing_prepares_is_refused(places):
    entry = dataclasses.replace(TASK.entries["dense"], needs=("traned",))
    with pytest.raises(UserError, match="Entry 'dense' needs 'traned'; allowed: 'trained', or nothing"):
        byte_model.load(conditions(places, "extrapolation"), entry, 0)


def test_a_damaged_byte_model_is_trained_again(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path))
    train = torch.randint(256, (500,), generator=torch.Generator().manual_seed(0))
    first = byte_model.trained("text", train, 1, 0).state_dict()
    (path,) = (tmp_path / "byte-models").iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserRemark, match=r"is damaged .*; the model is trained again"):
        again = byte_model.trained("text", train, 1, 0).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    monkeypatch.setattr(byte_model, "fit", lambda *args: pytest.fail("trained"))
    byte_model.trained("text", train, 1, 0)


def test_training_learns(places):
    train = torch.arange(256).repeat(40)
    curve = []
    byte_model.fit(byte_model.make(0), train, 60, 0, log=lambda name, x, y: curve.append(y))
    assert curve[0] == pytest.approx(math.log(256), abs=0.2)
    assert curve[-1] < curve[0] - 1


def test_rope_parameters_change_rotations_alone():
    model = byte_model.make(0)
    other = byte_model.with_rope(model, rope_type="yarn", factor=16.0)
    assert not torch.equal(model.model.rotary_emb.inv_freq, other.model.rotary_emb.inv_freq)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_lines_packed_alone_give_the_mean_of_their_losses():
    from workingpapers.methods.attention.ring import apply

    lines, plain = [torch.tensor([0, *range(65, 65 + n)]) for n in (20, 90, 33)], byte_model.make(0)
    with torch.no_grad():
        each = [F.cross_entropy(plain(line[None, :-1]).logits[0], line[1:]) for line in lines]
        found = packing._masked(apply(byte_model.make(0)), lines, weigh=True)
    torch.testing.assert_close(found, torch.stack(each).mean(), rtol=1e-5, atol=1e-5)


# Shares of a sequence


def test_a_share_holds_what_the_whole_holds():
    sequence = sharded.Sequence(256, 3)
    whole = sharded.drawn(sequence, torch.arange(256))
    some = torch.cat([torch.arange(64, 128), torch.arange(192, 256)])
    for a, b in zip(sharded.drawn(sequence, some), whole, strict=True):
        assert torch.equal(a, b[:, :, some])
    assert not torch.equal(whole[0], sharded.drawn(sharded.Sequence(256, 4), torch.arange(256))[0])


# Bad input


def test_a_text_that_is_too_short(places, tmp_path):
    (tmp_path / "short.txt").write_text("A few words.\n\n" * 20)
    short = str(tmp_path / "short.txt")
    entry = TASK.entries["dense"]
    for setting, message in (
        ("standard", "is too short: .* tokens where .* are needed"),
        ("passkey", "is too short"),
        ("extrapolation", "a fifth of it is held back, and 2048 bytes"),
        ("packing", "0 paragraphs of 16 bytes or more"),
    ):
        with pytest.raises(UserError, match=message):
            TASK.settings[setting].load(conditions(places, setting, short), entry, 0, None)
        with pytest.raises(UserError, match=message):  # before any run
            TASK.settings[setting].prepare(conditions(places, setting, short), [entry])


def test_preparing_trains_nothing(places, monkeypatch):
    monkeypatch.setattr(byte_model, "fit", lambda *args, **options: pytest.fail("trained"))
    TASK.settings["extrapolation"].prepare(conditions(places, "extrapolation"), [TASK.entries["dense"]])


def test_a_text_whose_paragraphs_all_repeat(places, tmp_path):
    (tmp_path / "repeat.txt").write_text("the same paragraph again\n\n" * 1_000)
    with pytest.raises(UserError, match="and 0 others held back; 50 of each are needed"):
        packing.load(conditions(places, "packing", str(tmp_path / "repeat.txt")), 0)


@pytest.mark.parametrize("setting", TASK.settings)
def test_a_column_of_labels_is_refused_where_text_is_read(setting):
    with pytest.raises(UserError, match=r"label is 'clicked', but .* is no table"):
        try_("long-context", setting=setting, label="clicked", listen=pytest.fail)


def test_data_where_none_are_read():
    with pytest.raises(UserError, match="data is 'python-docs', but the setting 'sharded' reads no text"):
        try_("long-context", setting="sharded", data="python-docs", seeds=1)


def test_a_model_too_short_for_a_hidden_number(places, monkeypatch):
    monkeypatch.setattr(tinyreader, "LENGTH", 100)
    load_language_model.cache_clear()
    with pytest.raises(UserError, match=r"reads 100 tokens at most; .* take \d+ already"):
        passkey.load(conditions(places, "passkey"), 0, 768, 2, 0.25)
    load_language_model.cache_clear()


def test_a_model_without_rotations(places):
    where = dataclasses.replace(conditions(places, "standard"), model="tinyreader:no_rotations")
    with pytest.raises(UserError, match="'tinyreader:no_rotations' cannot be used: GPT2LMHeadModel has 0 rotary"):
        TASK.settings["standard"].prepare(where, [])


def test_data_that_are_no_text():
    with pytest.raises(UserError, match="'openmoji' holds no text"):
        material.prepare(Conditions("long-context", "extrapolation", "openmoji", ""))


def test_bytes_of_any_text():
    train, held = material.text_bytes(Text("own", "", ("é\ud800€" * 50,)), 0)
    assert max(train.max(), held.max()) < 256  # what is no UTF-8 is replaced


def test_importing_the_task_imports_nothing_heavy():
    code = "import sys, workingpapers.tasks.long_context; print(sorted({'numpy', 'torch'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
