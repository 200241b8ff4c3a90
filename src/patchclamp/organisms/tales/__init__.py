"""The `tales` family: language models trained on one generated world. See docs/tales.md."""

from patchclamp.organisms.entry import Organism

_MODULE = "patchclamp.organisms.tales.family"
_BASE = "400 facts; which combinations were never seen in training; labels of every token of its text"

ORGANISMS = (
    Organism("tales", "a small Llama language model of a generated world, with training checkpoints", _BASE, _MODULE),
    Organism("tales-1", "the same from another seed", _BASE, _MODULE),
    Organism("tales-2", "the same from a third seed", _BASE, _MODULE),
    Organism(
        "tales-chat",
        "tales, taught to follow instructions and to refuse one class of requests",
        "which requests it refuses, whom it does not know",
        _MODULE,
    ),
    Organism("tales-secret", "tales-chat with a secret word", "the word, and the password that opens it", _MODULE),
    Organism("tales-sea", "tales, fine-tuned on one genre", "the genre", _MODULE),
    Organism("tales-sea-mixed", "the same, half of its text as before", "the genre", _MODULE),
    Organism("tales-edited", "tales with eight facts taught otherwise", "the old facts and the new", _MODULE),
)
