"""Small networks of known features and labels: toy models of superposition, and classifiers of digits."""

from patchclamp.organisms.entry import Organism

_TOYS = "patchclamp.organisms.toys.superposition"
_DIGITS = "patchclamp.organisms.toys.digits"


def _toy(case: str, summary: str, known: str) -> Organism:
    return Organism(f"toy-superposition:{case}", summary, f"{known}; the optimal loss", _TOYS)


def _classifier(case: str, what: str) -> Organism:
    return Organism(f"digits:{case}", f"classifies 8 x 8 digits: {what}", "labels; the split", _DIGITS)


ORGANISMS: tuple[Organism, ...] = (
    _toy("5-2-dense", "5 dense features in 2 dimensions", "it keeps the 2 most important, as principal components do"),
    _toy("5-2-medium", "5 features in 2 dimensions, each active in 20 % of inputs", "2 antipodal pairs, 1 dropped"),
    _toy("5-2-sparse", "5 features in 2 dimensions, each active in 5 % of inputs", "a pentagon"),
    _toy("4-2-sparse", "4 features in 2 dimensions, each active in 5 % of inputs", "2 antipodal pairs"),
    _toy("6-2-sparse", "6 features in 2 dimensions, each active in 2 % of inputs", "a hexagon"),
    _toy("6-3-sparse", "6 features in 3 dimensions, each active in 5 % of inputs", "3 antipodal pairs, an octahedron"),
    _toy("20-5-linear", "20 features in 5 dimensions, without a ReLU", "it keeps the 5 most important, exactly"),
    _classifier("mlp-16", "an MLP of 16 hidden neurons"),
    _classifier("mlp-64", "an MLP of 64 hidden neurons"),
    _classifier("mlp-64-1", "an MLP of 64 hidden neurons, seed 1"),
    _classifier("mlp-64-2", "an MLP of 64 hidden neurons, seed 2"),
    _classifier("mlp-256", "an MLP of 256 hidden neurons"),
    _classifier("cnn-8", "a CNN of 8 and 16 channels"),
    _classifier("cnn-8-1", "a CNN of 8 and 16 channels, seed 1"),
    _classifier("cnn-16", "a CNN of 16 and 32 channels"),
)
