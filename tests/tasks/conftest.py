from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from patchclamp.tasks.words import LISTS, WORDS


@pytest.fixture(scope="session")
def tokenizer():
    """Unlike the organism's: GPT-2's pieces, no BOS, no padding token; most years are two pieces of two digits."""
    words = [f" {word}" for name in LISTS for word in getattr(WORDS, name)] * 30
    words += [f" {century}" for century in range(11, 20)] * 30 + [f"{year:02d}" for year in range(100)] * 30
    words += ["When Then After While So So Q A I think that def self param Mary" for _ in range(50)] + [
        " he she it" for _ in range(50)
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


class Answering:
    """Stands in for a Model: `run` says at each position the logits that `say(ids)` gives."""

    def __init__(self, say, tokenizer=None):
        self.say, self.tokenizer = say, tokenizer

    def run(self, ids, *, attention_mask):
        assert attention_mask.shape == ids.shape
        return SimpleNamespace(logits=self.say(ids))


@pytest.fixture
def guessing():
    """A model that prefers token `id % vocab` after token id, so that clean and corrupted prompts can be told apart."""

    def make(vocab=50):
        return Answering(lambda ids: torch.nn.functional.one_hot(ids % vocab, vocab).float() * 10)

    return make
