"""The words that prompts are made of, and the part of them which one tokenizer holds as single tokens."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


MEN = _split(
    """
    John James Tom Michael David Mark Paul Andrew Richard Robert Daniel Kevin Brian Peter George Jack Adam Simon
    Henry Frank Martin Patrick Jason Eric Scott Ryan Matthew Luke Charles William Joseph Arthur
    """
)

WOMEN = _split(
    """
    Mary Sarah Anna Alice Emma Lisa Laura Maria Julia Kate Jennifer Jessica Emily Elizabeth Rachel Amy Michelle
    Karen Linda Susan Jane Claire Helen Diana Grace Ruth Rebecca Nancy Amanda Victoria Barbara Margaret
    """
)

PLACES = _split(
    """
    store school park garden station hospital office restaurant house library market museum beach church farm hotel
    theatre kitchen castle harbour
    """
)

OBJECTS = _split(
    """
    book ring drink shirt ball basketball bone computer bottle basket cup pencil puzzle lamp clock candle ribbon box
    key hat coat plate chair card coin mirror brush knife fork spoon
    """
)

COLORS = _split(
    """
    red blue green yellow purple black white pink brown gray silver gold
    """
)

# Hanna et al. 2023 take nouns that have a duration.
DURATIONS = _split(
    """
    war siege campaign voyage journey tour project program strike mission reign trial dispute conflict alliance
    truce exhibition expedition construction rebellion recession drought feud
    """
)

ROLES = _split(
    """
    friend teacher doctor singer cook dancer neighbour leader writer student player driver painter swimmer lawyer
    nurse musician reader speaker boss
    """
)

PRAISE = _split(
    """
    great good nice kind clever brave funny
    """
)

# Plain nouns for random sequences: nothing in them tells which follows which.
NOUNS = _split(
    """
    apple river stone tree horse window bridge paper sugar cloud wheel forest sister letter engine winter summer
    mountain village cotton metal glass butter flower salt rain snow wind moon star road door table bread milk corn
    wood iron sand hill bird fish cat dog cow pig sheep lion bear wolf fox duck bell drum song film game story novel
    """
)

ARGUMENTS = _split(
    """
    load size files port name value count path mode user text data line file code type key width height length index
    start order level state field event token page option label limit offset source target result message format
    depth scale
    """
)

FUNCTIONS = _split(
    """
    read write open close send find update remove create check parse build merge split copy move sort filter
    """
)


@dataclass(frozen=True)
class Words:
    """The word lists that the built-in tasks draw from; each word without its leading space."""

    men: tuple[str, ...]
    women: tuple[str, ...]
    places: tuple[str, ...]
    objects: tuple[str, ...]
    colors: tuple[str, ...]
    durations: tuple[str, ...]
    roles: tuple[str, ...]
    praise: tuple[str, ...]
    nouns: tuple[str, ...]
    arguments: tuple[str, ...]
    functions: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return self.men + self.women

    def single_tokens(self, is_single: Callable[[str], bool], task: str, at_least: dict[str, int]) -> "Words":
        """The lists named in `at_least`, cut down to the words for which `is_single(" " + word)` holds.

        Raises ValueError naming the task and how many words remained, where a list falls below its minimum.
        """
        kept = {}
        for field in at_least:
            words = getattr(self, field)
            kept[field] = tuple(word for word in words if is_single(" " + word))
            if len(kept[field]) < at_least[field]:
                raise ValueError(
                    f"{task}: only {len(kept[field])} of {len(words)} {field} are single tokens for this tokenizer "
                    f"({', '.join(kept[field][:6]) or 'none'}), and the task needs {at_least[field]}. "
                    "Write prompts that suit it: Task.from_prompts(model, clean=, corrupt=, answers=, wrong=)."
                )
        return replace(self, **kept)


WORDS = Words(
    men=MEN,
    women=WOMEN,
    places=PLACES,
    objects=OBJECTS,
    colors=COLORS,
    durations=DURATIONS,
    roles=ROLES,
    praise=PRAISE,
    nouns=NOUNS,
    arguments=ARGUMENTS,
    functions=FUNCTIONS,
)

LISTS = tuple(field.name for field in fields(Words))
