"""What cannot be planted, and why: `check(world)` raises ValueError with the reason and what would do."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchclamp.organisms.planted.world import Planted


def check(world: "Planted") -> None:
    """ValueError with the first thing that contradicts itself."""
    for wrong in _wrong(world):
        raise ValueError(wrong)


def _wrong(world: "Planted") -> Iterator[str]:
    count, p = world.features, world.probabilities
    if world.width < 1:
        yield f"width {world.width}: activations have 1 dimension or more"
    for i, probability in enumerate(p):
        if not 0 <= probability <= 1:
            yield f"feature {i} fires with probability {probability}, which is not between 0 and 1"
    for name in ("parents", "labels"):
        if getattr(world, name) and len(getattr(world, name)) != count:
            yield f"{name} has {len(getattr(world, name))} entries for {count} features"
    for model, row in enumerate(world.strengths):
        if len(row) != count:
            yield f"strengths of model {model} has {len(row)} entries for {count} features"
    if world.exact:
        if abs(sum(p) - round(sum(p))) > 1e-6:
            yield f"exact: the probabilities must sum to the number that fires in every row, not to {sum(p)}"
        if world.groups or world.parents:
            yield "exact: a fixed number of features goes with neither groups nor parents"
    yield from _wrong_groups(world)
    yield from _wrong_parents(world)
    yield from _wrong_geometry(world)
    if world.noise < 0 or world.offset < 0:
        yield f"noise {world.noise} and offset {world.offset} must not be negative"
    if world.seed < 0:
        yield f"seed {world.seed} must not be negative"
    if world.teacher is not None and not 0 <= world.teacher.reads <= count:
        yield f"the teacher's units read {world.teacher.reads} of {count} features"


def _wrong_groups(world: "Planted") -> Iterator[str]:
    if not 0 <= world.correlation <= 1:
        yield f"correlation {world.correlation} is not between 0 and 1; what excludes each other is exclusive children"
    if bool(world.groups) != bool(world.correlation):
        yield f"groups and correlation go together: {len(world.groups)} groups, correlation {world.correlation}"
    members = [i for group in world.groups for i in group]
    if len(set(members)) != len(members):
        yield "a feature is in two groups: groups share none"
    for i in members:
        if not 0 <= i < world.features:
            yield f"feature {i} of a group does not exist: there are {world.features}"
        if world.parents and world.parents[i] >= 0:
            yield f"feature {i} is in a group and has a parent: groups are of features without one"


def _wrong_parents(world: "Planted") -> Iterator[str]:
    p, total = world.probabilities, dict.fromkeys(world.parents, 0.0)
    if not -1 < world.child_cosine < 1:
        yield f"child_cosine {world.child_cosine} is not between -1 and 1"
    for child, parent in enumerate(world.parents):
        if not -1 <= parent < child:
            yield f"the parent of feature {child} is {parent}: a parent comes before its children, -1 is none"
        if parent >= 0 and p[child] > p[parent] * (1 + 1e-9):
            yield f"feature {child} fires more often ({p[child]}) than its parent {parent} ({p[parent]})"
        total[parent] += p[child]
    for parent in total:
        if world.exclusive and parent >= 0 and total[parent] > p[parent] * (1 + 1e-9):
            yield f"the exclusive children of feature {parent} fire more often ({total[parent]}) than it ({p[parent]})"


def _wrong_geometry(world: "Planted") -> Iterator[str]:
    needed = world.features + len(world.circles)
    if world.geometry not in ("random", "orthogonal", "neurons"):
        yield f"geometry {world.geometry!r} is none of random, orthogonal, neurons"
    if world.geometry == "orthogonal" and needed > world.width:
        yield f"{needed} orthogonal directions do not fit into width {world.width}: use geometry='random'"
    if (world.geometry == "neurons") != bool(world.support):
        yield "geometry 'neurons' and support (neurons of each feature) go together"
    if world.support:
        if len(world.support) != world.features:
            yield f"support has {len(world.support)} entries for {world.features} features"
        if min(world.support) < 1 or max(world.support) > world.width:
            yield f"a feature lives on 1 to {world.width} neurons, not on {world.support}"
        if world.circles or world.child_cosine:
            yield "geometry 'neurons' has neither circles nor child_cosine"
    if len(set(world.circles)) != len(world.circles) or any(not 0 <= i < world.features for i in world.circles):
        yield f"circles {world.circles} must be different features below {world.features}"
    if world.points < 0 or (world.points and not world.circles):
        yield f"points {world.points}: a number of places on each of the {len(world.circles)} circles, or 0 for all"
    if world.circles and world.width < 2:
        yield "a circle needs width 2 or more"
