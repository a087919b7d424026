"""Models that read the items' texts in `recommend`, and the recommender on their vectors."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel  # not for type checking alone: options are checked by their annotations

from workingpapers.methods.recommenders.hllm import HLLM
from workingpapers.methods.recommenders.hllm_encoders import ItemEncoder
from workingpapers.methods.recommenders.metrics import ndcg_at
from workingpapers.methods.recommenders.sequences import Histories, Log, SequenceRecommender, leave_last_out
from workingpapers.tasks.protocol import Context
from workingpapers.tasks.recommend.examples import WIDTH, Examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LAYERS = 2  # of the model of users, as of the other networks
DEPTH = 4  # first layers of the decoder that read texts; of 2 to 12, the best on training data alone
RATES = (1e-3, 3e-3, 3e-4)  # learning rates, in the order in which trials take them
# Of a text 24 tokens: titles, years and genres have 15 on average. Sorted by length they need no packing.
READING: dict[str, Any] = {"prompt": "", "pooling": "mean", "max_length": 24, "packed": False}
LEARNING: dict[str, Any] = {"max_history": 20, "num_negatives": 256}


def sentence_model(package: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return all-MiniLM-L6-v2 and its tokenizer from the installed package."""
    import tempfile
    import zipfile
    from importlib.util import find_spec
    from pathlib import Path

    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # a second of loading needs none, and it would run across the listing
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(Path(spec.origin).with_name("model.zip")) as archive:
            archive.extractall(folder)
        return AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def decoder(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the first layers of a language model, its final norm and its tokenizer.

    Raises:
        UserError: it needs packages that are not there.
    """
    from workingpapers.data.language_models import load_language_model

    whole = load_language_model(name)
    body = whole.model.base_model
    config = copy.deepcopy(body.config)
    config.num_hidden_layers = DEPTH
    first = type(body)(config)
    weights = body.state_dict()
    first.load_state_dict({key: weights[key] for key in first.state_dict()})
    return first.eval(), whole.tokenizer


def user_model(seed: int) -> PreTrainedModel:
    """Return Llama blocks with random weights."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=1,  # it reads vectors, no tokens
        bos_token_id=None,
        eos_token_id=None,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaModel(config)


def vectors(texts: Sequence[str], item: PreTrainedModel, tokenizer: Any) -> NDArray[np.float32]:
    """Return the vectors (V, d) of texts, the means of an item model's last states."""
    encoder = ItemEncoder(item, tokenizer, **READING)
    found: NDArray[np.float32] = encoder.encode(encoder.tokens(texts)).numpy()
    return found


class TextRecommender(SequenceRecommender):
    """HLLM on the catalogue's texts, with an item model that stays as it is and a small model of users.

    Args:
        item: the item model.
        tokenizer: of texts.
        train: the texts, and which items are new: they are encoded after the training.
        learning_rate, epochs, seed: of the training.

    Attributes:
        validation_: NDCG@10 on the last item of each training history with three or more, which is not trained on.
    """

    def __init__(
        self, item: PreTrainedModel, tokenizer: Any, train: Examples, learning_rate: float, epochs: int, seed: int
    ) -> None:
        self.item, self.tokenizer, self.train = item, tokenizer, train
        self.learning_rate, self.epochs, self.seed = learning_rate, epochs, seed

    def _fit(self, log: Log) -> None:
        new = self.train.new
        known, place = np.flatnonzero(~new), np.cumsum(~new) - 1
        split = leave_last_out(log)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            user = user_model(self.seed)
            self.model_ = HLLM(self.item, user, self.tokenizer, freeze_item=True, adapter=True, **READING, **LEARNING)
            self.model_.fit(
                [self.train.sentences[i] for i in known],
                [place[history].tolist() for history in split.train.histories if len(history) > 1],
                epochs=self.epochs,
                learning_rate=self.learning_rate,
                batch_size=32,
                seed=self.seed,
            )
        if new.any():
            index = torch.empty(len(new), WIDTH)
            index[torch.from_numpy(~new)] = self.model_.index
            self.model_.set_items([text for text, is_new in zip(self.train.sentences, new, strict=True) if is_new])
            index[torch.from_numpy(new)] = self.model_.index
            self.model_.index = index
        self.validation_ = ndcg_at(self.ranks(split.histories, split.targets), 10)

    def _scores(self, histories: Histories) -> Tensor:
        return self.model_.scores([history.tolist() for history in histories])


def reader(train: Examples, context: Context, item: PreTrainedModel, tokenizer: Any) -> TextRecommender:
    """Return the recommender with the best validation NDCG@10 among the budget's learning rates."""
    budget = context.budget
    fitted = [
        TextRecommender(item, tokenizer, train, rate, budget.epochs, context.seed).fit(train.log)
        for rate in RATES[: budget.trials]
    ]
    best = max(fitted, key=lambda model: model.validation_)
    for epoch, value in enumerate(best.model_.loss_history, start=1):
        context.log("training loss by epoch", epoch, value)
    return best
