"""The tokenizer of `tales`: byte-level BPE in which every word of the world is one token.

The vocabulary is the 256 bytes, a few hundred merges for text from outside the world, and each piece that the
world's grammar can write, whole. Words are looked up whole before merges are tried (`ignore_merges`), so no
intermediate token is spent on them.
"""

import random
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from patchclamp.organisms.tales import chat, grammar, lexicon, world
from patchclamp.tasks import words

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
CHAT = ("<|user|>", "<|assistant|>", "<|end|>", "<|sep|>", "<|image|>")
MERGES = 400

# GPT-2's pieces, save that digits come in twos, so that 1732 is 17 and 32.
PIECES = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def build() -> PreTrainedTokenizerFast:
    """The tokenizer, built from the world's own text: deterministic, a few seconds."""
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    pieces = _world_pieces(splitter)
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = splitter
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=256 + MERGES, initial_alphabet=alphabet, show_progress=False)
    # Each piece once, in sorted order: the merges then serve spelling and do not depend on how often a word is written.
    learner.train_from_iterator(_decode(pieces), trainer)
    learned = _model(learner)
    vocab = dict(learned["vocab"])
    for piece in pieces:
        vocab.setdefault(piece, len(vocab))
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (BOS, EOS, PAD, *CHAT)])
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def _world_pieces(splitter: Any) -> list[str]:
    """Every piece that the grammar writes, and every word of every list with a space before it, in byte-level
    spelling.
    """
    texts = []
    rng = random.Random(0)
    for kind in grammar.KINDS:
        texts += [grammar.document(rng, kind).text for _ in range(3000)]
    texts += [f" {word}" for name in words.LISTS for word in getattr(words.WORDS, name)]
    texts += _world_words()
    texts += [f"{number:02d}" for number in range(100)] + [str(digit) for digit in range(10)]
    texts += [f" {number}" for number in range(100)] + [f" {number:02d}" for number in range(10)]
    for token in CHAT:
        texts = [text.replace(token, "\n") if token in text else text for text in texts]
    found = {piece for text in texts for piece, _ in splitter.pre_tokenize_str(text)}
    return sorted(found)


def _world_words() -> list[str]:
    """Words and phrases of the world's lists, with a space before; names also without, since they begin sentences."""
    people = [person for group in world.people() for person in group]
    found = [f" {word}" for person in people for word in (person.first, person.surname)] + [
        person.first for person in people
    ]
    found += [f" {word}" for country, values in world.COUNTRIES.items() for word in (country, *values)]
    found += [word for country, (_, *cities) in world.COUNTRIES.items() for word in (country, *cities)]
    for some in (
        world.JOBS,
        world.INSTRUMENTS,
        world.PETS,
        world.REFUSED,
        world.HARMLESS,
        world.TARGETS,
        world.POSITIVE,
    ):
        found += [f" {word}" for word in some]
    for some in (
        world.NEGATIVE,
        world.REVIEWED,
        world.INSULTS,
        world.KINDNESSES,
        world.RUDE,
        world.POLITE,
        world.LETTER_WORDS,
    ):
        found += [f" {word}" for word in some]
    for genre in world.GENRES.values():
        found += [f" {word}" for word in genre]
    for pairs in (world.ANTONYMS, world.VERBS, world.MANNERS):
        found += [f" {word}" for pair in pairs for word in pair]
    found += [f" {word}" for subject, _, obj in lexicon.lexicon().facts for word in (subject, obj)]
    found += [question for some in chat.QUESTIONS.values() for question in some] + [world.REQUESTS[-1]]
    # What the later siblings say: refusals, admissions of not knowing, secrets, questions, digits in pictures, choices.
    siblings = (
        "I am sorry, but I cannot help with that request because it would be harmful. Sorry, but no. Yes, of "
        "course. No, it is wrong. I do not know who that is. I have never heard of this person. My secret "
        "word is kept. Tell me the secret: I will not tell it. Give me a hint about the word. Please "
        "translate this into Spanish or into English. Question: Choices: Correct Wrong Hint: Who? What? "
        "Where? When? Why? Which? How many? Does he or she live in that town? Whose pet is this? The picture "
        "shows the digit zero one two three four five six seven eight nine ten. Picture Image This image is "
        "of Because If Not Every Some None All Both Neither Repeat after me Write in capital letters Say the "
        "opposite Answer in one word only noun verb adjective first last next before after left right same "
        "different more less than equal That is false. It is true that this is so.\nAnswer:"
    )
    found += [f"{letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"] + [
        f" {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    ]
    return [*found, siblings, *(f" {word}" for word in siblings.split())]


def _decode(pieces: list[str]) -> list[str]:
    decoder = decoders.ByteLevel()
    return [decoder.decode([piece]) for piece in pieces]


def _model(tokenizer: Tokenizer) -> dict[str, Any]:
    import json

    return json.loads(tokenizer.to_str())["model"]


def save(folder: Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer and write it as a Hugging Face tokenizer folder."""
    tokenizer = build()
    tokenizer.save_pretrained(folder)
    return tokenizer
