import subprocess
import sys
import time

import pytest
import torch

import patchclamp as pc
from patchclamp import organisms

NAMES = organisms.names()


def test_every_organism_has_a_row():
    rows = organisms.describe()
    assert [row["name"] for row in rows] == NAMES
    for row in rows:
        assert row["what it is"] and row["what is known"] and row["made"]


@pytest.fixture(scope="module")
def imported():
    """transformers imports what a class needs when it is first used: seconds that are no organism's."""
    for name in ("tales", "tales-moe", "tales-vision", "compiled:hand-induction", "induction", "digits:cnn-8"):
        pc.load(f"organism:{name}")


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_at_once_and_certifies(name, imported):
    began = time.process_time()
    model = pc.load(f"organism:{name}")
    assert time.process_time() - began < 2  # of this process alone, whatever else the machine does
    assert model.certify().holds
    assert organisms.truth(name).name == name


@pytest.mark.parametrize("name", [name for name in NAMES if not organisms._organism(name).written])
def test_a_trained_one_is_a_checkpoint_folder_with_its_recipe(name):
    folder = organisms.path(name)
    assert {"config.json", "model.safetensors", "recipe.json"} <= {file.name for file in folder.iterdir()}
    assert {"seed", "parameters", "loss", "seconds"} <= organisms.recipe(name).keys()
    for file in folder.rglob("*"):
        assert file.name != "checkpoint.pt" and file.stat().st_size < 16e6


def test_a_written_one_has_no_folder_and_no_training(tmp_path):
    for ask in (organisms.path, lambda name: organisms.train(name, tmp_path)):
        with pytest.raises(LookupError, match=r"compiled:hand-induction is (built|written)"):
            ask("compiled:hand-induction")
    with pytest.raises(LookupError, match="no training checkpoint"):
        pc.load("organism:compiled:hand-induction@100")


@pytest.mark.parametrize("name", [name for name in NAMES if organisms.checkpoints(name)])
def test_checkpoints_load_and_differ(name):
    steps = organisms.checkpoints(name)
    first, last = (pc.load(f"organism:{name}@{step}") for step in (steps[0], steps[-1]))
    final = pc.load(f"organism:{name}")
    states = [model.hf.state_dict() for model in (first, last, final)]
    assert all(state.keys() == states[0].keys() for state in states)
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_a_checkpoint_that_was_not_kept_is_refused():
    with pytest.raises(LookupError, match="no checkpoint of 'tales' after 3 steps was kept"):
        pc.load("organism:tales@3")
    with pytest.raises(ValueError, match="after @ comes a number"):
        pc.load("organism:tales@end")


def test_an_unknown_name_is_answered_with_the_nearest():
    for ask in (organisms.path, organisms.truth):
        with pytest.raises(LookupError, match="Did you mean 'tales'"):
            ask("tale")


def test_the_list_imports_no_torch():
    heavy = (
        "import sys; from patchclamp import organisms; organisms.describe(); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_weights_of_the_repository_are_small():
    assert sum(file.stat().st_size for file in organisms.WEIGHTS.rglob("*") if file.is_file()) < 60e6


def test_truth_says_what_it_cannot_do():
    empty = organisms.Truth("nothing")
    with pytest.raises(LookupError, match="no sampler"):
        empty.sample(1)
    with pytest.raises(LookupError, match="not trained on text"):
        empty.documents(1)
    with pytest.raises(LookupError, match="no split 'test'"):
        empty.split("test")
