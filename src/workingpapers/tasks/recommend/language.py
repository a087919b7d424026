"""Entries of `recommend` that read the items' texts with a pre-trained model of sentences, all-MiniLM-L6-v2.

On one thread of a processor its six layers encode a catalogue once within the quick budget; to train them along would
take minutes for every pass, which is why no entry does.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from workingpapers.tasks.protocol import Context
from workingpapers.tasks.recommend.settings import task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from workingpapers.methods.recommenders.sequences import SequenceRecommender
    from workingpapers.tasks.recommend.examples import Examples

PACKAGE = "all_minilm_l6_v2"
WIDTH, LAYERS = 64, 2  # of the model of users, as of the other networks
LONGEST = 24  # tokens of a text: titles and genres have 14 on average
OPTIONS: dict[str, Any] = {
    "prompt": "",
    "pooling": "mean",
    "max_length": LONGEST,
    "max_history": 20,
    "num_negatives": 256,
}


def sentence_model() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return all-MiniLM-L6-v2 and its tokenizer from the installed package."""
    import tempfile
    import zipfile
    from pathlib import Path

    from transformers import AutoModel, AutoTokenizer

    package = find_spec(PACKAGE)
    assert package is not None
    assert package.origin is not None
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(Path(package.origin).with_name("model.zip")) as archive:
            archive.extractall(folder)
        return AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def user_model(seed: int) -> PreTrainedModel:
    """Return Llama blocks with random weights."""
    import torch
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


def reader(train: Examples, context: Context, item: PreTrainedModel, tokenizer: Any) -> SequenceRecommender:
    """Return a recommender on cached vectors of an item model that stays as it is."""
    import torch

    from workingpapers.methods.recommenders.hllm import HLLM
    from workingpapers.methods.recommenders.sequences import Histories, Log, SequenceRecommender

    class Reader(SequenceRecommender):
        """HLLM with the catalogue's texts."""

        def _fit(self, log: Log) -> None:
            with torch.random.fork_rng():
                torch.manual_seed(context.seed)
                self.model_ = HLLM(item, user_model(context.seed), tokenizer, freeze_item=True, adapter=True, **OPTIONS)
                self.model_.fit(
                    train.sentences(),
                    [history.tolist() for history in log.histories if len(history) > 1],
                    epochs=context.budget.epochs,
                    learning_rate=1e-3,
                    batch_size=32,
                    seed=context.seed,
                )
            for step, value in enumerate(self.model_.loss_history, start=1):
                context.log("training loss by epoch", step, value)

        def _scores(self, histories: Histories) -> torch.Tensor:
            return self.model_.scores([history.tolist() for history in histories])

    return Reader().fit(train.log)


if find_spec(PACKAGE) is not None:

    @task.entry("standard", paper="hllm")
    def hllm_frozen(train: Examples, context: Context) -> SequenceRecommender:
        """A model of users on the items' texts as MiniLM reads them, frozen, with one linear layer between."""
        return reader(train, context, *sentence_model())
