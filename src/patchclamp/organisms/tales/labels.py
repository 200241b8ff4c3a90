"""What holds of every token of a document: roles, part of speech, first letter, language, kind.

token_labels(document, tokenizer)[3].part_of_speech       # "noun"
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from patchclamp.organisms.tales import chat, grammar, lexicon, world
from patchclamp.tasks.words import WORDS


@dataclass(frozen=True)
class TokenLabels:
    """The attributes of one token; empty where an attribute does not apply (BOS has none but the kind)."""

    roles: tuple[str, ...]  # "answer", "IO", "positive", "genre:sea": a role of the whole text holds on every token
    part_of_speech: str
    first_letter: str  # lower case, without accents
    language: str  # "english", "spanish", "infix", "prefix"
    kind: str  # of its document

    def names(self) -> tuple[str, ...]:
        """All of it as names, as probes and dictionaries are scored by: "role:IO", "pos:noun", "letter:a", ..."""
        pairs = [("role", role) for role in self.roles]
        pairs += [("pos", self.part_of_speech), ("letter", self.first_letter), ("language", self.language)]
        return tuple(f"{what}:{value}" for what, value in [*pairs, ("kind", self.kind)] if value)


def token_labels(document: grammar.Document, tokenizer: Any) -> list[TokenLabels]:
    """The labels of every token of the document, BOS included."""
    offsets = tokenizer(document.text, return_offsets_mapping=True)["offset_mapping"]
    found = []
    for start, end in offsets:
        text = document.text[start:end].strip()
        roles = tuple(dict.fromkeys(span.role for span in document.spans if start < span.end and end > span.start))
        letter = _ACCENTS.get(text[0].lower(), text[0].lower()) if text[:1].isalpha() else ""
        found.append(TokenLabels(roles, _part_of_speech(text, roles), letter, _language(text, roles), document.kind))
    return found


def token_roles(document: grammar.Document, tokenizer: Any) -> list[tuple[str, ...]]:
    """For every token of the document (BOS included), the roles that it plays."""
    return [labels.roles for labels in token_labels(document, tokenizer)]


_ACCENTS = {"á": "a", "é": "e", "í": "i", "ó": "o", "ú": "u", "ñ": "n"}

# Where a word may be of two classes, its role says which; otherwise its list does.
_BY_ROLE = {
    "VERB": "verb",
    "VERB2": "verb",
    "AGENT": "noun",
    "SCENE": "noun",
    "OBJECT": "noun",
    "THING": "noun",
    "PLACE": "noun",
    "TARGET": "noun",
    "TARGET2": "noun",
    "ARTICLE": "determiner",
    "ARTICLE2": "determiner",
    "OPINION": "adjective",
    "PRAISE": "adjective",
    "ROLE": "noun",
    "WHO": "noun",
    "WHERE": "noun",
    "MANNER": "",
}


def _split(words: str) -> frozenset[str]:
    return frozenset(words.split())


_CLOSED = {
    "determiner": _split("the a an The A every Every all most this that such what which la el La El Which What"),
    "pronoun": _split(
        "he she it his her He She I you we They We they them You nothing nobody Nobody it Whoever everything who "
        "What Whom Whose my your me self some"
    ),
    "preposition": _split(
        "to at in of for with after on from as by near into out through up around In At By On After before en about"
    ),
    "conjunction": _split("and but or that When While If if because so So than"),
    "particle": _split("not n't isn t to both Both again otra too Then then After"),
    "adverb": _split(
        "really so well Well early once there here When Where How now always today slowly out together back hoy ahora "
        "siempre aquí bien despacio how How away once"
    ),
    "verb": _split(
        "is was are went had lost found took left put bought gave got give decided handed hid has have lies belongs "
        "meets sits speak plays practises gives shares feeds works earns grew born live working spent lasted "
        "think saw came spoke wrote begins starts writes becomes reads lists counts say said does do did tell Tell "
        "explain want should show Write Say Translate hide hiding kept knew loved hated smiled slept told would go "
        "isn find take ask make look start stay be can Can could cannot help know am steal return print let set "
        "add mul sub def will were teach earn feed practise Shouted"
    ),
    "noun": _split(
        "talk lunch bag year time friends home town job profession instrument lessons pet house morning evening map "
        "city government parliament people language schools living word letter class grammar dictionary sign opposite "
        "translation question answer review Question Answer English Spanish Q password secret request way money day "
        "country letters adjective noun verb hint friends tools plan sight table color None param Count first"
    ),
    "adjective": _split("true false positive negative sorry favourite capital secret long good careful calm True"),
}


@cache
def _classes() -> dict[str, str]:
    """Word to part of speech, from the lists; the first to name a word decides."""
    table: dict[str, str] = {}

    def give(part: str, words: Any) -> None:
        for word in words:
            table.setdefault(word, part)

    people = [person for group in world.people() for person in group]
    give("name", [*WORDS.names, *(p.first for p in people), *(p.surname for p in people)])
    give("name", [*world.COUNTRIES, *world.CITIES, *(language for language, *_ in world.COUNTRIES.values())])
    for part, words in _CLOSED.items():
        give(part, words)
    give("verb", [*lexicon.VERBS, *(verb for _, verb in world.VERBS), *world.REFUSED, *world.HARMLESS])
    give("adverb", [word for pair in world.MANNERS for word in pair])
    give("adjective", [*lexicon.ADJECTIVES, *world.POSITIVE, *world.NEGATIVE, *world.RUDE, *world.POLITE])
    give("adjective", [*WORDS.praise, *WORDS.colors])
    give("noun", [*WORDS.places, *WORDS.objects, *WORDS.durations, *WORDS.roles, *WORDS.nouns, *WORDS.arguments])
    give("noun", [*WORDS.functions, *world.JOBS, *world.INSTRUMENTS, *world.PETS, *world.TARGETS, *world.REVIEWED])
    give("noun", [*world.INSULTS, *world.KINDNESSES, *world.LETTER_WORDS, *lexicon.NOUNS, chat.PASSWORD])
    give("noun", [word for _, word, _ in (*world.ANIMATE, *world.SCENES)])
    give("noun", [word for words in world.GENRES.values() for word in words])
    give("name", [word.upper() for word in world.LETTER_WORDS])
    return table


def _part_of_speech(text: str, roles: tuple[str, ...]) -> str:
    if not text:
        return ""
    if not text[0].isalnum():
        return "special" if text.startswith("<|") else "punctuation"
    if text[0].isdigit():
        return "number"
    if len(text) == 1 and text.isupper() and text not in ("A", "I", "Q"):
        return "letter"
    by_role = next((part for role in roles if (part := _BY_ROLE.get(role))), "")
    return by_role or _classes().get(text) or _classes().get(text.lower(), "")


def _language(text: str, roles: tuple[str, ...]) -> str:
    if not re.search(r"\w", text) or text.isdigit():
        return ""
    for role in roles:
        if role in ("english", "spanish"):
            return role
        if role.startswith("code:"):
            return role.removeprefix("code:")
    return "english"
