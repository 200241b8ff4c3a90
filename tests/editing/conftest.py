"""Tiny models that read words, for what needs prompts."""

import pytest
from transformers import PreTrainedTokenizerFast

import patchclamp as pc
from tiny import build


def _tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    text = "[unk] [bos] anna bela carl dora was born in lives paris rome oslo bern is a the city of"
    vocabulary = {word: i for i, word in enumerate(text.split())}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[unk]", bos_token="[bos]", pad_token="[unk]")


@pytest.fixture
def tiny_model():
    """A tiny random model of a family, with a tokenizer of a dozen words."""
    return lambda family: pc.wrap(build(family), _tokenizer(), name=family)
