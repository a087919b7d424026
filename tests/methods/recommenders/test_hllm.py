"""The two models together: learning, caching, freezing, heads, files, and what is refused."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from workingpapers.methods.recommenders.hllm import HLLM

ITEMS = [[2 + i // 6, 20 + i % 6] for i in range(36)]  # two tokens tell an item


def lm(width=32, seed=0, layers=2):
    torch.manual_seed(seed)
    options = {"num_hidden_layers": layers, "num_attention_heads": 4, "max_position_embeddings": 64}
    return LlamaModel(LlamaConfig(vocab_size=64, hidden_size=width, intermediate_size=2 * width, **options))


def small(**options):
    torch.manual_seed(0)
    return HLLM(lm(), lm(seed=1), **{"max_length": 8, "num_negatives": 32, "max_history": 8, **options}).eval()


def walks(count, length=7, seed=0):
    """Histories in which each item leads to the one seven further."""
    start = np.random.default_rng(seed).integers(36, size=count)
    return [[int((s + 7 * i) % 36) for i in range(length)] for s in start]


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(0)
    return small().fit(ITEMS, walks(150), epochs=12, learning_rate=5e-3, batch_size=25)


def test_predicts_the_next_item_of_users_never_seen(fitted):
    held = walks(40, seed=1)
    items, scores = fitted.recommend([h[:-1] for h in held], k=3)
    assert np.mean(items[:, 0].numpy() == [h[-1] for h in held]) > 0.9  # 1/36 by chance
    assert (scores.diff(dim=1) <= 0).all()
    assert fitted.loss_history[-1] < fitted.loss_history[0] / 3
    assert not any(set(row.tolist()) & set(h[:-1]) for row, h in zip(items, held, strict=True))


def test_seen_items_are_left_out_only_if_asked(fitted):
    history = [0, 0, 0]
    full = fitted.scores([history])[0]
    items, scores = fitted.recommend([history], k=36, exclude_seen=False)
    assert sorted(items[0].tolist()) == list(range(36))
    torch.testing.assert_close(scores[0], full[items[0]])
    assert 0 not in fitted.recommend([history], k=35)[0]
    bytes_ = np.array([1, 2], np.uint8)  # torch would take them for a mask
    assert not set(fitted.recommend([bytes_], k=34)[0][0].tolist()) & {1, 2}
    with pytest.raises(ValueError, match="k is 36; it must lie between 1 and 35"):
        fitted.recommend([history], k=36)


def test_the_cached_index_equals_live_encoding(fitted):
    with torch.no_grad():
        live = torch.cat([fitted.adapter(fitted.item(fitted.item.tokens([item]))) for item in ITEMS])
    # Packed in another company: float32 sums in another order.
    torch.testing.assert_close(fitted.index, live, atol=1e-5, rtol=1e-4)


def test_scores_are_cosines_and_do_not_depend_on_who_else_is_asked(fitted, monkeypatch):
    histories = [[3], [1, 2, 3, 4, 5, 6], list(range(20))]
    monkeypatch.setattr("workingpapers.methods.recommenders.hllm.SERVED", 2)
    found = fitted.scores(histories)
    for row, history in zip(found, histories, strict=True):
        with torch.no_grad():
            state = fitted.user(fitted.index[torch.tensor(history[-8:])][None])[0, -1]
        torch.testing.assert_close(row, F.cosine_similarity(state[None], fitted.index), atol=1e-5, rtol=1e-4)


def test_another_catalogue_needs_no_training(fitted):
    model = copy.deepcopy(fitted)
    order = np.random.default_rng(0).permutation(36)
    place = np.argsort(order)
    before = fitted.scores([[0, 7, 14]])
    model.set_items([*(ITEMS[i] for i in order), [2, 63]])
    after = model.scores([place[[0, 7, 14]].tolist()])
    assert after.shape == (1, 37)
    torch.testing.assert_close(after[:, place], before, atol=1e-5, rtol=1e-4)


def test_long_histories_are_cut_from_their_end():
    model = small(max_history=3)
    rows, _ = model._training_rows([list(range(10)), [11, 12], [13]], 36, None, None)
    assert rows.tolist() == [[6, 7, 8, 9], [2, 3, 4, 5], [0, 1, -1, -1], [11, 12, -1, -1]]


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("options", [{"freeze_item": True, "adapter": True, "pooling": "mean"}, {"freeze_user": True}])
def test_frozen_models_stay_as_they_are(options):
    model = small(**options)
    kept, other = (model.item, model.user) if "freeze_item" in options else (model.user, model.item)
    before, moving = weights(kept), weights(other)
    model.fit(ITEMS, walks(20), epochs=1, learning_rate=1e-2, batch_size=10)
    assert all(torch.equal(before[name], p) for name, p in kept.named_parameters())
    assert any(not torch.equal(moving[name], p) for name, p in other.named_parameters())
    assert not kept.train(False).training
    model.train()
    assert not kept.training
    assert other.training


def test_items_can_be_cached_and_the_user_model_trained_on(fitted):
    model = copy.deepcopy(fitted)
    model.freeze_items()
    model.fit(ITEMS, walks(50), epochs=1, batch_size=25)
    assert torch.equal(model.index, model.item.encode(ITEMS))
    # Fixed vectors give the same loss as encoding the items of each batch.
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    rows = torch.tensor(walks(10))
    found = [
        model._batch_loss(ITEMS, fixed, rows, [], g)[0]
        for fixed, g in zip((model.index, None), generators, strict=True)
    ]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    assert model.loss_history[0] < 1.5 * fitted.loss_history[-1]


def test_the_items_of_the_batch_can_be_the_negatives():
    model = small(num_negatives=None).fit(ITEMS, walks(150), epochs=12, learning_rate=5e-3, batch_size=25)
    held = walks(20, seed=1)
    assert np.mean(model.recommend([h[:-1] for h in held], k=1)[0][:, 0].numpy() == [h[-1] for h in held]) > 0.9


def clicks(count, seed):
    """Histories of one kind of items, and candidates that are taken if they are of that kind."""
    rng = np.random.default_rng(seed)
    kind, shown = rng.integers(2, size=count), rng.integers(36, size=count)
    histories = [(rng.integers(18, size=rng.integers(1, 6)) + 18 * k).tolist() for k in kind]
    return histories, shown.tolist(), ((shown >= 18) == kind).astype(int).tolist()


@pytest.mark.parametrize("head", ["early", "late"])
def test_the_heads_that_rank_learn_a_rule_of_user_and_item(head, monkeypatch):
    model = small(head=head, generative_weight=0.1)
    histories, shown, taken = clicks(400, 0)
    options = {"epochs": 8, "learning_rate": 5e-3, "batch_size": 40}
    model.fit(ITEMS, histories, candidates=shown, labels=taken, **options)
    histories, shown, taken = clicks(200, 1)
    monkeypatch.setattr("workingpapers.methods.recommenders.hllm.SERVED", 64)
    found = model.predict_proba(histories, shown)
    assert np.mean((found.numpy() > 0.5) == np.array(taken)) > 0.9
    one = model.predict_proba(histories[:1], shown[:1])
    torch.testing.assert_close(one, found[:1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head", ["early", "late"])
def test_the_loss_of_a_head_that_ranks_is_its_two_parts(head):
    model = small(head=head, generative_weight=0.5)
    plain = small()
    sequences, negatives = torch.tensor([[1, 2, 3], [4, 5, -1]]), torch.tensor([20, 21])
    shown, taken = torch.tensor([6, 7]), torch.tensor([1, 0])
    table = torch.randn(36, 32)
    found, logs = model.loss(table, sequences, negatives, shown, taken)
    torch.testing.assert_close(logs["generative"], plain.loss(table, sequences, negatives)[0])
    model.index = table
    p = model.predict_proba([[1, 2, 3], [4, 5]], [6, 7])
    expected = F.binary_cross_entropy(p, taken.float())
    torch.testing.assert_close(found, expected + 0.5 * logs["generative"], atol=1e-5, rtol=1e-5)
    # By the definition, one user at a time.
    end = table[6] if head == "early" else model.user_slot
    with torch.no_grad():
        u = model.user(torch.cat([table[1:4], end[None]])[None])[0, -1]
        logit = model.out(u if head == "early" else torch.cat([u, table[6], u * table[6]]))
    torch.testing.assert_close(p[:1], logit.sigmoid(), atol=1e-6, rtol=1e-5)


def tokenizer():
    words = {w: i for i, w in enumerate(["[UNK]", "[PAD]", *"abcdefghijklmnopqrstuvwxyz", "Compress", "sentence"])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]")


@pytest.mark.parametrize("head", ["generative", "late"])
def test_comes_back_from_a_folder(tmp_path, head):
    torch.manual_seed(0)
    model = HLLM(lm(32), lm(16, seed=1), tokenizer(), head=head, max_length=16, max_history=4, num_negatives=4)
    texts = [f"{a} {b}" for a in "abc" for b in "xyz"]
    assert len(model.item.tokens(texts)[0]) == 9  # six words of the prompt, its colon, and two of the item
    options = {} if head == "generative" else {"candidates": [4, 5], "labels": [0, 1]}
    model.fit(texts, [[0, 1, 2], [3, 4]], epochs=1, **options)
    model.save(tmp_path / "model")
    loaded = HLLM.load(tmp_path / "model")
    assert torch.equal(loaded.index, model.index)
    if head == "generative":
        assert torch.equal(loaded.scores([[0, 1]]), model.scores([[0, 1]]))
    else:
        assert torch.equal(loaded.predict_proba([[0, 1]], [3]), model.predict_proba([[0, 1]], [3]))
    torch.testing.assert_close(loaded.set_items(texts).index, model.index, atol=1e-5, rtol=1e-4)
    assert loaded.options == model.options
    weights = tmp_path / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="are damaged"):
        HLLM.load(tmp_path / "model")
    save_file({"index": model.index}, str(weights))
    with pytest.raises(ValueError, match=r"holds the weights \['index'\]"):
        HLLM.load(tmp_path / "model")
    held = json.loads((tmp_path / "model" / "model.json").read_text())
    (tmp_path / "model" / "model.json").write_text(json.dumps(held).replace('"max_history"', '"max_histories"'))
    with pytest.raises(ValueError, match=r"holds no HLLM: .*'max_histories'"):
        HLLM.load(tmp_path / "model")
    (tmp_path / "model" / "model.json").write_text(json.dumps(held | {"format": "other"}))
    with pytest.raises(ValueError, match="holds 'other'; expected"):
        HLLM.load(tmp_path / "model")
    (tmp_path / "model" / "model.json").write_text("{")
    with pytest.raises(ValueError, match="holds no HLLM"):
        HLLM.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("histories", "options", "message"),
    [
        ([], {}, "there are no histories"),
        ([[1, 2], []], {}, "history 1 must hold numbers of items"),
        ([[1, 2], [0.5, 1.0]], {}, "history 1 must hold numbers"),
        ([[1, 2], ["a"]], {}, "history 1 must hold numbers"),
        ([1, 2], {}, "history 0 must hold numbers"),
        ([[1, [2, 3]]], {}, "history 0 must hold numbers"),
        ([[1, 36]], {}, "history 0 holds 1 to 36; the items are 0 to 35"),
        ([[-1, 3]], {}, "history 0 holds -1 to 3"),
        ([[1], [2]], {}, "no history holds two items"),
        ([[1, 2]], {"candidates": [1], "labels": [1]}, "learns from histories alone"),
        ([[1, 2]], {"epochs": 0}, "epochs is 0"),
        ([[1, 2]], {"epochs": "5"}, "epochs is '5'; it must be a whole number"),
        ([[1, 2]], {"learning_rate": float("nan")}, "learning_rate nan"),
        ([[1, 2]], {"learning_rate": 1e30, "epochs": 3}, "the loss of epoch . is nan"),
    ],
)
def test_bad_training_data_is_named(histories, options, message):
    with pytest.raises(ValueError, match=message):
        small().fit(ITEMS, histories, **options)


def test_bad_clicks_are_named():
    model = small(head="late")
    for given, message in (
        ({}, "a candidate and a label for each of 1 histories"),
        ({"candidates": [40], "labels": [1]}, "candidates holds 40 to 40"),
        ({"candidates": [4], "labels": [2]}, r"labels must be 0 or 1; got \[2\]"),
        ({"candidates": [4], "labels": ["yes"]}, r"labels must be 0 or 1; got \['yes'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(ITEMS, [[1, 2]], **given)
    with pytest.raises(ValueError, match="head 'late' needs candidates and labels"):
        model(ITEMS, torch.tensor([[1, 2]]), torch.tensor([3]))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("frozen", [False, True])
def test_models_train_where_gradients_are_switched_off(mode, frozen):
    given = {"items": ITEMS, "histories": walks(20), "epochs": 1}
    expected, model = small(freeze_item=frozen).fit(**given), small(freeze_item=frozen)
    with mode():
        model.fit(**given)
    assert torch.equal(model.index, expected.index)
    assert model.loss_history == expected.loss_history


def test_items_that_all_look_alike_are_told():
    with pytest.raises(ValueError, match="no negative was left in epoch 1"):
        small().fit([[1, 2]] * 5, [[0, 1, 2]])


def test_the_wrong_question_for_a_head_is_told(fitted):
    with pytest.raises(ValueError, match="no catalogue yet"):
        small().scores([[1]])
    with pytest.raises(ValueError, match="use scores or recommend"):
        fitted.predict_proba([[1]], [2])
    with pytest.raises(ValueError, match="use predict_proba"):
        small(head="early").recommend([[1]])
    with pytest.raises(ValueError, match="history 0 holds 99"):
        fitted.scores([[99]])
    with pytest.raises(ValueError, match="k is '3'; it must be a whole number"):
        fitted.recommend([[1]], "3")


def test_numbers_of_numpys_are_numbers(tmp_path):
    model = small(max_history=np.int64(8), temperature=np.float32(0.5))
    model.fit(ITEMS, [[1, 2]], epochs=np.int64(1), batch_size=np.int64(2), seed=np.int64(3)).save(tmp_path)
    assert HLLM.load(tmp_path).options["max_history"] == 8
