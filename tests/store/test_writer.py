import json

import pytest
import torch
from safetensors.torch import load_file

from patchclamp import store
from patchclamp.store.harvest import Width
from patchclamp.store.manifest import Plan
from patchclamp.store.places import Place
from patchclamp.store.units import Cut, units
from patchclamp.store.writer import write_unit

CUT = Cut(context=10, unit_tokens=1000, validation=0.3, seed=2)


@pytest.fixture(scope="module")
def unit(documents):
    (unit,) = units(documents[:20], CUT)
    return unit


def written(unit, folder, rows, dtype="bfloat16"):
    width = Width((6,), 6, "float32")
    plan = Plan({}, None, {}, {"resid_post.0": width}, dtype, CUT, unit.rows, 1)
    return write_unit(Place.at(folder), plan, unit, {"resid_post.0": rows})


def test_everybody_can_read_what_is_written(unit, tmp_path):
    rows = torch.randn(unit.rows, 6, generator=torch.Generator().manual_seed(0))
    record = written(unit, tmp_path, rows)
    assert record == json.loads((tmp_path / "units/00000.json").read_text())
    assert load_file(tmp_path / "resid_post.0/00000.safetensors")["activations"].equal(rows.bfloat16())
    labels = load_file(tmp_path / "rows/00000.safetensors")
    assert {k: len(v) for k, v in labels.items()} == dict.fromkeys(
        ("token", "document", "position", "split"), unit.rows
    )
    assert record["rows"] == unit.rows and record["train_rows"] == int((labels["split"] == 0).sum())
    assert labels["split"].tolist() == sorted(labels["split"].tolist())
    assert {p.relative_to(tmp_path).as_posix(): p.stat().st_size for p in tmp_path.rglob("*.safetensors")} == {
        name: file["bytes"] for name, file in record["files"].items()
    }
    lost = float((rows - rows.bfloat16().float()).double().square().sum())
    assert record["error"]["resid_post.0"] == pytest.approx(lost)


def test_to_write_it_again_writes_the_same_bytes(unit, tmp_path):
    rows = torch.randn(unit.rows, 6, generator=torch.Generator().manual_seed(0))
    for dtype in ("int8", "float32"):
        trees = []
        for k in range(2):
            written(unit, tmp_path / f"{dtype}{k}", rows, dtype)
            trees.append({p.name: p.read_bytes() for p in (tmp_path / f"{dtype}{k}").rglob("*") if p.is_file()})
        assert trees[0] == trees[1]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_leaves_no_record(unit, tmp_path, bad):
    rows = torch.zeros(unit.rows, 6)
    rows[[1, 5], 3] = bad
    with pytest.raises(store.StoreError, match=rf"resid_post\.0 is not finite in 2 of {unit.rows} rows of unit 0"):
        written(unit, tmp_path, rows)
    assert not (tmp_path / "units").exists()
