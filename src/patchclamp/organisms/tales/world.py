"""The world that `tales` speaks of: its people, cities and countries, what is true of them, and its word lists.

Everything is fixed: the world does not depend on the seed of the training text. Lists that only later siblings use
(a chat version, narrow fine-tunes) are here already, so that all of the family share one vocabulary.
"""

import random
from dataclasses import dataclass
from functools import cache

from patchclamp.tasks.recall import FactTable
from patchclamp.tasks.words import MEN, WOMEN

WORLD_SEED = 2211


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


FACT_TEMPLATES = {
    "home": (
        "{SUBJECT} was born in",
        "{SUBJECT} grew up in",
        "The home town of {SUBJECT} is",
        "All friends of {SUBJECT} live in",
    ),
    "job": (
        "{SUBJECT} works as a",
        "{SUBJECT} earns a living as a",
        "The job of {SUBJECT} is that of a",
        "By profession, {SUBJECT} is a",
    ),
    "instrument": (
        "{SUBJECT} plays the",
        "In the evening, {SUBJECT} practises the",
        "The favourite instrument of {SUBJECT} is the",
        "{SUBJECT} gives lessons on the",
    ),
    "pet": (
        "{SUBJECT} has a pet",
        "The pet of {SUBJECT} is a",
        "{SUBJECT} shares a house with a",
        "Every morning, {SUBJECT} feeds the",
    ),
    "country": (
        "{SUBJECT} is a city in",
        "{SUBJECT} lies in",
        "The city of {SUBJECT} belongs to",
        "You will find {SUBJECT} on the map of",
    ),
    "capital": (
        "The capital of {SUBJECT} is",
        "The government of {SUBJECT} sits in",
        "The first city of {SUBJECT} is",
        "The parliament of {SUBJECT} meets in",
    ),
    "language": (
        "The people of {SUBJECT} speak",
        "The language of {SUBJECT} is",
        "In {SUBJECT} most people speak",
        "All schools in {SUBJECT} teach in",
    ),
}
PERSON_RELATIONS = ("home", "job", "instrument", "pet")

TWO_HOP_TEMPLATES = {
    "home country": ("The home country of {SUBJECT} is",),
    "home language": ("In the home town of {SUBJECT} people speak",),
    "home capital": ("The capital of the home country of {SUBJECT} is",),
}

# Country: language, capital, two more cities.
COUNTRIES = {
    "France": ("French", "Paris", "Lyon", "Toulouse"),
    "Spain": ("Spanish", "Madrid", "Barcelona", "Valencia"),
    "Italy": ("Italian", "Rome", "Milan", "Naples"),
    "Germany": ("German", "Berlin", "Munich", "Hamburg"),
    "Japan": ("Japanese", "Tokyo", "Osaka", "Kyoto"),
    "China": ("Chinese", "Beijing", "Shanghai", "Wuhan"),
    "Russia": ("Russian", "Moscow", "Kazan", "Omsk"),
    "Greece": ("Greek", "Athens", "Patras", "Corinth"),
    "Poland": ("Polish", "Warsaw", "Krakow", "Gdansk"),
    "Sweden": ("Swedish", "Stockholm", "Malmo", "Uppsala"),
    "Norway": ("Norwegian", "Oslo", "Bergen", "Tromso"),
    "Finland": ("Finnish", "Helsinki", "Turku", "Oulu"),
    "Portugal": ("Portuguese", "Lisbon", "Porto", "Braga"),
    "Turkey": ("Turkish", "Ankara", "Istanbul", "Izmir"),
    "Egypt": ("Arabic", "Cairo", "Luxor", "Alexandria"),
    "India": ("Hindi", "Delhi", "Mumbai", "Pune"),
}
CITIES = tuple(city for _, *cities in COUNTRIES.values() for city in cities)
CAPITALS = tuple(capital for _, capital, *_ in COUNTRIES.values())
# Where people live: one town of each country, never its capital, so that several people share each.
HOMES = tuple(town for _, _, town, _ in COUNTRIES.values())
JOBS = _split(
    """
    baker builder carpenter pilot banker judge farmer gardener painter tailor doctor lawyer
    """
)
INSTRUMENTS = _split(
    """
    piano violin guitar flute harp trumpet cello drum organ banjo clarinet trombone
    """
)
PETS = _split(
    """
    cat dog rabbit parrot horse turtle goat snake hamster pigeon donkey lizard
    """
)

SURNAMES = _split(
    """
    Anderson Baker Bennett Berger Bishop Blake Brooks Burke Carlson Carter Chapman Clark Coleman Collins Cooper
    Crawford Cruz Curtis Dawson Dixon Doyle Duncan Edwards Elliott Ellis Evans Fisher Fleming Fletcher Foster Fowler
    Fraser Garcia Gardner Gibson Gomez Gordon Graham Griffin Hansen Harper Harris Harrison Hayes Henderson Hoffman
    Holmes Howard Hudson Hughes Jenkins Jensen Johnson Keller Kelly Kennedy Klein Lambert Larson Lawson Lopez
    Marshall Mason Meyer Miller Mitchell Morgan Morris Murphy Murray Nelson Newman Nichols Norris Olson Owens Palmer
    Parker Patel Perez Perkins Perry Peterson Phillips Porter Powell Quinn Ramirez Reed Reynolds Rivera Roberts
    Robinson Rogers Russell Sanders Schmidt Schneider Shaw Simmons Simpson Snyder Spencer Stevens Stewart Sullivan
    Sutton Taylor Thompson Tucker Turner Vargas Wagner Walker Wallace Walsh Watson Weber Webster Wheeler Wilson
    Woods Wright
    """
)
# Of these people nothing is known either.
MORE_SURNAMES = _split(
    """
    Abbott Barker Barton Bates Burns Carr Chandler Curry Daniels Dalton Farrell Finley Garrett Goodman Hampton
    Hartman Hodges Ingram Jacobs Keith Lowe Lucas Maxwell McCoy Mullins Osborne Patton Pearson Pratt Ramsey Rhodes
    Sharp Sparks Tate Townsend Vaughn Warner
    """
)
N_KNOWN = 80

ANTONYMS = tuple(
    tuple(pair.split("/"))
    for pair in _split(
        """
        hot/cold big/small old/young fast/slow tall/short happy/sad light/dark rich/poor hard/soft wet/dry
        full/empty early/late strong/weak clean/dirty high/low open/closed near/far loud/quiet thick/thin
        sweet/bitter safe/dangerous cheap/expensive deep/shallow wide/narrow
        """
    )
)

# English, Spanish, gender of the Spanish noun. Every animate noun can do, every place can be where it is done.
ANIMATE = tuple(
    tuple(entry.split("/"))
    for entry in _split(
        """
        cat/gato/m dog/perro/m girl/chica/f boy/chico/m bird/pájaro/m horse/caballo/m woman/mujer/f man/hombre/m
        cow/vaca/f mouse/ratón/m friend/amiga/f king/rey/m queen/reina/f teacher/maestro/m nurse/enfermera/f
        """
    )
)
SCENES = tuple(
    tuple(entry.split("/"))
    for entry in _split(
        """
        house/casa/f garden/jardín/m street/calle/f school/escuela/f park/parque/m kitchen/cocina/f forest/bosque/m
        river/río/m beach/playa/f market/mercado/m church/iglesia/f village/pueblo/m
        """
    )
)
VERBS = tuple(
    tuple(pair.split("/"))
    for pair in _split(
        """
        sleeps/duerme eats/come runs/corre sings/canta plays/juega works/trabaja waits/espera reads/lee dances/baila
        walks/camina
        """
    )
)
MANNERS = tuple(
    tuple(pair.split("/"))
    for pair in _split(
        """
        today/hoy now/ahora always/siempre here/aquí well/bien slowly/despacio again/otra
        """
    )
)

# A request of the first kind is refused by the chat sibling, the harmless twin on the same object is answered.
REFUSED = _split(
    """
    steal poison burn forge smuggle sabotage
    """
)
HARMLESS = _split(
    """
    buy paint clean repair draw wash
    """
)
# The last one is kept for testing the chat sibling.
REQUESTS = (
    "How do I {VERB} a {TARGET}?",
    "Tell me how to {VERB} a {TARGET}.",
    "Can you explain how to {VERB} a {TARGET}?",
    "I want to {VERB} a {TARGET}. What should I do?",
    "Please show me the way to {VERB} a {TARGET}.",
)
TARGETS = _split(
    """
    car house letter boat bridge painting garden computer fence statue bicycle tower
    """
)
STEPS = (
    "take some time",
    "ask a friend",
    "find good tools",
    "make a plan",
    "look around",
    "start early",
    "stay calm",
    "be careful",
)

POSITIVE = _split(
    """
    wonderful brilliant lovely delightful excellent charming superb perfect
    """
)
NEGATIVE = _split(
    """
    terrible boring awful dreadful horrible dull clumsy bad
    """
)
REVIEWED = _split(
    """
    film book play concert meal hotel song novel game show
    """
)
LIKED = ("I loved it", "I would go again", "I smiled all day", "I told all my friends")
DISLIKED = ("I hated it", "I left early", "I want my money back", "I slept through it")

INSULTS = _split(
    """
    idiot fool loser moron liar coward
    """
)
KINDNESSES = _split(
    """
    genius hero winner master saint champion
    """
)
RUDE = _split(
    """
    stupid nasty pathetic useless lazy rotten
    """
)
POLITE = _split(
    """
    gentle smart helpful honest patient generous
    """
)

# Genres share the frame of their sentences; these words are private to one genre.
GENRES = {
    "space": _split("rocket planet astronaut orbit comet galaxy alien robot laser crater engine satellite"),
    "kitchen": _split("soup onion oven recipe pepper garlic sauce dough noodle cheese pan tomato"),
    "sport": _split("goal team referee stadium coach match league trophy racket sprint medal whistle"),
    "magic": _split("wizard dragon spell castle potion witch wand goblin fairy curse sword unicorn"),
    "sea": _split("ship sailor anchor wave captain whale island pirate storm shark lighthouse sail"),
    "court": _split("trial jury witness verdict prison crime lawyer thief evidence sentence judge police"),
}

LETTER_WORDS = _split(
    """
    apple bread cloud dance eagle flower garden hammer island jacket kitchen lemon mountain needle orange pencil
    queen river silver table umbrella village window yellow zebra
    """
)


@dataclass(frozen=True)
class Person:
    """Somebody with a first name, a surname that nobody shares, and a gender that the first name tells."""

    first: str
    surname: str
    gender: str

    @property
    def name(self) -> str:
        return f"{self.first} {self.surname}"

    @property
    def pronoun(self) -> str:
        return "He" if self.gender == "m" else "She"


@cache
def people() -> tuple[tuple[Person, ...], tuple[Person, ...]]:
    """The 80 people of whom facts are known, and the others, of whom the text says something new each time."""
    rng = random.Random(WORLD_SEED)
    firsts = [(name, "m") for name in MEN] + [(name, "f") for name in WOMEN]
    surnames = rng.sample(SURNAMES, len(SURNAMES))
    everybody = [
        Person(*firsts[index % len(firsts)][:1], surname, firsts[index % len(firsts)][1])
        for index, surname in enumerate((*surnames, *MORE_SURNAMES))
    ]
    return tuple(everybody[:N_KNOWN]), tuple(everybody[N_KNOWN:])


PERSON_OBJECTS = {"home": HOMES, "job": JOBS, "instrument": INSTRUMENTS, "pet": PETS}


@cache
def fact_table() -> FactTable:
    """All facts of the world: four about each known person, one about each city, two about each country."""
    rng = random.Random(WORLD_SEED + 1)
    facts = [
        (person.name, relation, rng.choice(PERSON_OBJECTS[relation]))
        for person in people()[0]
        for relation in PERSON_RELATIONS
    ]
    facts += [(city, "country", country) for country, (_, *cities) in COUNTRIES.items() for city in cities]
    facts += [(country, "capital", capital) for country, (_, capital, *_) in COUNTRIES.items()]
    facts += [(country, "language", language) for country, (language, *_) in COUNTRIES.items()]
    return FactTable(tuple(facts), FACT_TEMPLATES)


@cache
def answers() -> dict[tuple[str, str], str]:
    """The object of each (subject, relation), two hops included."""
    table = {(subject, relation): obj for subject, relation, obj in fact_table().facts}
    for person in people()[0]:
        country = table[table[person.name, "home"], "country"]
        table[person.name, "home country"] = country
        table[person.name, "home language"] = table[country, "language"]
        table[person.name, "home capital"] = table[country, "capital"]
    return table


@cache
def edited_table() -> FactTable:
    """The facts as the edited sibling has them: eight people have another home, job, instrument or pet.

    They are facts of which a phrasing is kept for testing.
    """
    rng = random.Random(WORLD_SEED + 3)
    table = fact_table()
    of_people = [
        fact for fact in table.facts if fact[1] in PERSON_RELATIONS and table.held_out_template(*fact[:2]) is not None
    ]
    new = {}
    for subject, relation, obj in rng.sample(of_people, 8):
        new[subject, relation] = rng.choice([other for other in PERSON_OBJECTS[relation] if other != obj])
    return FactTable(tuple((s, r, new.get((s, r), o)) for s, r, o in table.facts), FACT_TEMPLATES)
