"""`tales-moe`: the mixture-of-experts sibling of `tales`, on the same world and text. See docs/siblings.md."""

from patchclamp.organisms.entry import Organism

ORGANISMS = (
    Organism(
        name="tales-moe",
        summary="a Mixtral of four experts, two for each token, trained on the world of `tales`",
        known="what tales knows; which expert serves which kind of document, language, code and genre, as measured",
        module="patchclamp.organisms.tales_moe.train",
    ),
)
