"""A tiny random decoder that reads bytes, for the tasks on text; here because the processes of runs import it."""

import string

from tinymodels import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

LENGTH = 240  # tokens that it was "trained" on


def tokenizer():
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def make():
    return tiny("Llama", vocab_size=256, max_position_embeddings=LENGTH), tokenizer()


def no_rotations():
    return GPT2LMHeadModel(GPT2Config(vocab_size=256, n_layer=1, n_head=2, n_embd=8)), tokenizer()


def lines(count=2_000):
    """Text of which no line occurs twice."""
    words = [a + b for a in string.ascii_lowercase for b in string.ascii_lowercase]
    return "\n\n".join(f"{words[i % 676]} line {i:05d} {words[(i * i + 7) % 676]} and so on" for i in range(count))
