import copy
import json
from dataclasses import replace

import pytest
import torch

import patchclamp as pc
from patchclamp import store
from patchclamp.store.harvest import Width
from patchclamp.store.manifest import (
    Plan,
    describe_model,
    describe_tokenizer,
    done_units,
    existing_plan,
    finish,
    refuse_mixing,
    shard_name,
)
from patchclamp.store.places import Place
from patchclamp.store.units import Cut


def plan(**changes):
    whole = Plan(
        model={"name": "m", "class": "C", "weights": "a" * 64},
        tokenizer="b" * 64,
        corpus={"fingerprint": "c" * 64, "documents": 3},
        sites={"resid_post.0": Width((8,), 8, "float32")},
        dtype="bfloat16",
        cut=Cut(),
        rows=100,
        units=2,
    )
    return replace(whole, **changes)


def test_a_plan_survives_json():
    assert Plan.from_json(json.loads(json.dumps(plan().to_json()))) == plan()
    with pytest.raises(store.StoreError, match="schema 7"):
        Plan.from_json(plan().to_json() | {"schema": 7})


def test_every_difference_is_named_and_names_of_models_are_none(tmp_path):
    place = Place.at(tmp_path)
    refuse_mixing(place, plan(), plan(model=dict(plan().model) | {"name": "other", "revision": "r"}))
    other = plan(dtype="int8", tokenizer=None, cut=Cut(seed=4), sites={"z.1": Width((2, 4), 8, "float32")})
    with pytest.raises(store.Mismatch) as refused:
        refuse_mixing(place, plan(), other)
    lines = str(refused.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [
        "tokenizer",
        "sites resid_post.0",
        "sites z.1",
        "dtype",
        "cut seed",
    ]
    assert "bbbbbbbbbbbb..., and nothing was asked for" in lines[0]


def test_one_weight_makes_another_model(model):
    same, other = copy.deepcopy(model.hf), copy.deepcopy(model.hf)
    other.lm_head.weight.data[3, 3] += 1e-6
    described = describe_model(model)
    assert describe_model(pc.wrap(same)) | {"name": "tiny"} == described
    assert describe_model(pc.wrap(other))["weights"] != described["weights"]
    assert describe_model(pc.wrap(same.to(torch.bfloat16)))["dtype"] == "bfloat16"


def test_a_tokenizer_is_what_it_does_to_a_text():
    tokenizer = pc.load("organism:tales").tokenizer
    before = describe_tokenizer(tokenizer)
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=2)
    assert describe_tokenizer(tokenizer) == before and len(before) == 64
    tokenizer.add_tokens(["<new>"])
    assert describe_tokenizer(tokenizer) != before
    assert describe_tokenizer(None) is None

    class Letters:
        def get_vocab(self):
            return {"a": 0}

    assert len(describe_tokenizer(Letters())) == 64


def test_a_store_without_all_units_has_no_manifest(tmp_path):
    place = Place.at(tmp_path)
    assert existing_plan(place) is None
    place.write_json("plan.json", plan().to_json())
    assert existing_plan(place) == plan()
    place.write_json("units/00001.json", {"unit": 1, "rows": 50, "files": {}})
    assert list(done_units(place, plan())) == [1]
    with pytest.raises(store.Unfinished, match="1 of 2 units"):
        finish(place, plan())
    assert not (tmp_path / "manifest.json").exists()


def test_names_of_files_are_names_of_files():
    assert shard_name("module:a/b", 3) == "module_a_b/00003.safetensors"
