"""Studies on a model of which nothing is known: identities are measured on it, the rest says what it needs."""

from importlib import import_module

import pytest

import patchclamp as pc
from patchclamp.organisms import Truth
from patchclamp.studies import Lab, NotApplicable
from patchclamp.studies.verdict import judge
from tiny import build

MEASURED = {
    "circuits.circuit_reuse": ("ends", "own_pattern"),
    "circuits.sae_circuits": ("none_of_their_own",),
    "patching.alignment_routes": ("parts_sum", "own_state_changes_nothing"),
    "patching.patching_best_practices": ("everything", "nothing"),
    "patching.punctuation_predicates": (
        "own_states_change_nothing",
        "embeddings_are_the_prompt",
        "frozen_layers_change_nothing",
    ),
    "patching.recall_vs_reasoning": ("all_layers_restore",),
}
REFUSED = {
    "circuits.circuit_reuse": ("does_both", "repairs"),
    "circuits.induction_formation": ("additive",),
    "dictionaries.amortisation_gap": ("dictionary_explains_the_stream",),
    "dictionaries.itda": ("energy_is_kept", "model_has_learnt"),
    "dictionaries.principled_sae_evals": ("does_the_task",),
    "patching.alignment_routes": ("chat_refuses",),
    "patching.vlm_two_hop": ("names", "second_hop_is_lost", "own_states_change_nothing"),
}
"""Without a tokenizer."""


@pytest.fixture(scope="module")
def lab():
    return Lab(pc.wrap(build("llama"), name="mine"), Truth(""))


def claims(of):
    return [(module, name) for module, names in of.items() for name in names]


def claim(module, name):
    study = import_module(f"patchclamp.studies.{module}").study
    return next(one for one in study.claims if one.name == name)


@pytest.mark.parametrize(("module", "name"), claims(MEASURED))
def test_identities_are_measured_on_it_and_hold(lab, module, name):
    asked, bench = claim(module, name), lab.at(name)
    assert judge(asked, asked.measure(bench)).holds and bench.used


def test_the_parts_of_capped_logits_are_no_sum():
    capped = Lab(pc.wrap(build("gemma2"), name="capped"), Truth(""))
    with pytest.raises(NotApplicable, match="no soft cap"):
        claim("patching.alignment_routes", "parts_sum").measure(capped)


@pytest.mark.parametrize(("module", "name"), claims(REFUSED))
def test_what_it_lacks_is_said_at_once(lab, module, name):
    with pytest.raises(NotApplicable, match=r"^needs (a|an|organism:)"):
        claim(module, name).measure(lab.at(name))
