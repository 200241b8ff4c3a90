import subprocess
import sys

import pytest

from patchclamp import organisms


def test_every_organism_has_a_row_and_is_a_checkpoint_folder_or_a_function():
    rows = {row["name"]: row for row in organisms.describe()}
    assert list(rows) == organisms.names()
    for name in organisms.names():
        built = organisms.build(name)
        if built is not None:
            assert built.certify().holds
            with pytest.raises(LookupError, match="no folder"):
                organisms.path(name)
            continue
        folder = organisms.path(name)
        assert {"config.json", "model.safetensors", "tokenizer.json", "recipe.json"} <= {
            f.name for f in folder.iterdir()
        }
        assert all(rows[name].values())


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


def test_truth_says_what_it_cannot_do():
    empty = organisms.Truth("nothing")
    with pytest.raises(LookupError, match="no sampler"):
        empty.sample(1)
    with pytest.raises(LookupError, match="not trained on text"):
        empty.documents(1)
