"""What the text of `tales` says about words: `lexicon()` is a table of facts (word, relation, object), taught in
phrasings of which one is kept for testing for most words.

    lexicon().facts[0]          # ("apple", "letter", "A")
"""

from functools import cache

from patchclamp.organisms.tales import world
from patchclamp.tasks.recall import FactTable

TEMPLATES = {
    "letter": (
        "The word {SUBJECT} begins with the letter",
        "The first letter of {SUBJECT} is",
        "Whoever writes {SUBJECT} starts with",
    ),
    "opposite": (
        "The opposite of {SUBJECT} is",
        "If it is not {SUBJECT}, then it is",
        "Nobody is both {SUBJECT} and",
    ),
    "class": (
        "The word class of {SUBJECT} is",
        "In grammar, {SUBJECT} counts as",
        "The dictionary lists {SUBJECT} as",
    ),
    "capitals": (
        "In capital letters, {SUBJECT} becomes",
        "Shouted, the word {SUBJECT} reads",
        "The sign does not say {SUBJECT} but",
    ),
    "spanish": (
        "The Spanish word for {SUBJECT} is",
        "In Spanish, {SUBJECT} is",
        "A translation of {SUBJECT} is",
    ),
}

NOUNS = tuple(english for english, _, _ in (*world.ANIMATE, *world.SCENES))
ADJECTIVES = tuple(word for pair in world.ANTONYMS for word in pair)
VERBS = tuple(english for english, _ in world.VERBS)


@cache
def lexicon() -> FactTable:
    """First letters, opposites, word classes, capitals, and Spanish words."""
    spelled = dict.fromkeys((*world.LETTER_WORDS, *NOUNS, *ADJECTIVES))
    facts = [(word, "letter", word[0].upper()) for word in spelled]
    facts += [(a, "opposite", b) for pair in world.ANTONYMS for a, b in (pair, pair[::-1])]
    facts += [(word, "class", "noun") for word in dict.fromkeys((*world.LETTER_WORDS, *NOUNS)) if word != "yellow"]
    facts += [(word, "class", "adjective") for word in ADJECTIVES]
    facts += [(word, "class", "verb") for word in VERBS]
    facts += [(word, "capitals", word.upper()) for word in world.LETTER_WORDS]
    facts += [(english, "spanish", spanish) for english, spanish, _ in (*world.ANIMATE, *world.SCENES)]
    facts += [(english, "spanish", spanish) for english, spanish in (*world.VERBS, *world.MANNERS)]
    return FactTable(tuple(facts), TEMPLATES)


@cache
def pairs() -> dict[str, tuple[tuple[str, str], ...]]:
    """Input and output of each in-context task. No input tells its task: each is the input of another task as well."""
    by_relation = {
        relation: [(s, o) for s, r, o in lexicon().facts if r == relation]
        for relation in ("letter", "opposite", "capitals", "spanish")
    }
    nouns = set(NOUNS)
    return {
        "antonym": tuple(by_relation["opposite"]),
        "spanish": tuple(pair for pair in by_relation["spanish"] if pair[0] in nouns),
        "capital": tuple((country, capital) for country, (_, capital, *_) in world.COUNTRIES.items()),
        "language": tuple((country, language) for country, (language, *_) in world.COUNTRIES.items()),
        "letter": tuple(by_relation["letter"]),
        "uppercase": tuple(by_relation["capitals"]),
    }
