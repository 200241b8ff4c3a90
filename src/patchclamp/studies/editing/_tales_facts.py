"""Counterfactuals of the world of `tales`, for the studies of editing."""

from patchclamp.editing import Rewrite, drawn
from patchclamp.organisms.tales import world
from patchclamp.studies.lab import Lab

RELATIONS = (*world.PERSON_RELATIONS, "country")


def rewrites(lab: Lab, n: int, seed: int) -> list[Rewrite]:
    """Facts about people and cities with another object of the relation, and what follows from where people live."""
    lab.need({relation for _, relation, _ in lab.truth.facts} & set(RELATIONS), "a model that was taught tales' facts")
    return drawn(world.fact_table(), n, seed, relations=RELATIONS, follows=follows)


def follows(subject: str, relation: str, obj: str) -> list[tuple[str, str]]:
    """What follows from somebody's home: country, language and capital."""
    if relation != "home":
        return []
    country = world.answers()[obj, "country"]
    told = {
        "home country": country,
        "home language": world.answers()[country, "language"],
        "home capital": world.answers()[country, "capital"],
    }
    return [(world.TWO_HOP_TEMPLATES[r][0].replace("{SUBJECT}", subject), told[r]) for r in told]
