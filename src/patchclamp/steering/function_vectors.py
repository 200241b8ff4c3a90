"""Function vectors: the state in which a model is about to do what its examples show, as a direction.

    vectors = pc.steering.function_vectors(model, {"antonym": prompts, "capital": more}, site="resid_post.2")
    model.run("Q: hot A:", do=[vectors["antonym"].add(2.0, pos=-1)])

The mean state at the last token of prompts with examples of one task, less the mean over those of all tasks, which is
what prompts of this shape have in common (Jorgensen et al. 2023, arXiv:2312.03813, section 3.3; the uncentred mean is
the baseline of Todd et al. 2023, arXiv:2310.15213).
"""

from collections.abc import Mapping, Sequence

from patchclamp.model import Model
from patchclamp.sites import Site
from patchclamp.steering.direction import Direction, DirectionError
from patchclamp.steering.means import mean


def function_vectors(
    model: Model, prompts: Mapping[str, Sequence[str]], *, site: str | Site, centred: bool = True
) -> dict[str, Direction]:
    """One direction a task, from its prompts; every task weighs the same in what is subtracted.

    Raises `DirectionError` where there is one task alone to centre, or a task has fewer than 8 prompts.
    """
    if centred and len(prompts) < 2:
        raise DirectionError("centring needs the prompts of at least two tasks: of one, nothing would be left")
    means = {task: mean(model, list(texts), site=site, pos=-1) for task, texts in prompts.items()}
    if not centred:
        return means
    first, *rest = means.values()
    shared = sum(rest, first) * (1 / len(means))
    about = {task: {"model": model.name, "tasks": len(means)} for task in means}
    return {
        task: Direction(own.site, (own - shared).vector, f"function vector: {task}", about[task])
        for task, own in means.items()
    }
