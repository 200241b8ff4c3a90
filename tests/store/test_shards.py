import pytest
import safetensors.torch
import torch

from patchclamp.store import Damaged
from patchclamp.store.shards import compress, decode, encode, expand, mapped, outliers_kept, row_bytes


def tensors():
    return {
        "small": torch.tensor([1, 2, 3], dtype=torch.int8),
        "wide": torch.arange(6, dtype=torch.float64).view(2, 3),
        "half": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "none": torch.empty(0, 4),
    }


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_the_files_are_safetensors_to_everybody(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"".join(encode(tensors())))
    assert same(safetensors.torch.load_file(path), tensors())
    assert same(mapped(path), tensors())
    assert same(decode(path.read_bytes(), "x"), tensors())
    safetensors.torch.save_file(tensors(), path, metadata={"format": "pt"})
    assert same(mapped(path), tensors())


def test_a_mapped_file_is_never_written_to(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"".join(encode(tensors())))
    before = path.read_bytes()
    mapped(path)["wide"].fill_(7)
    assert path.read_bytes() == before


@pytest.mark.parametrize("length", [0, 5, 40, -1])
def test_a_truncated_file_is_told(tmp_path, length):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"".join(encode(tensors()))[:length])
    with pytest.raises(Damaged, match=r"x\.safetensors is truncated"):
        mapped(path)
    with pytest.raises(Damaged, match="truncated"):
        decode(path.read_bytes(), "x")


def test_what_is_no_such_file_is_told(tmp_path):
    with pytest.raises(Damaged, match="missing"):
        mapped(tmp_path / "none")
    (tmp_path / "text").write_bytes((4).to_bytes(8, "little") + b"oops")
    with pytest.raises(Damaged, match="header cannot be read"):
        mapped(tmp_path / "text")


def heavy(n=500, d=128):
    """Rows like those of a residual stream: two dimensions are two hundred times as large as the others."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    x[:, [3, 77]] *= 200
    return x


def unexplained(x, y):
    return float((x - y).square().sum() / (x - x.mean(0)).square().sum())


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 0), ("bfloat16", 1e-5), ("int8", 1e-5)])
def test_rows_come_back_up_to_the_precision_kept(dtype, bound):
    x = heavy()
    kept = compress(x, dtype)
    back = expand(kept, slice(None), torch.float32)
    assert unexplained(x, back) <= bound
    index = torch.tensor([4, 1, 1, 499])
    assert expand(kept, index, torch.float32).equal(back[index])
    assert expand(kept, index, torch.bfloat16).dtype == torch.bfloat16
    assert sum(t.numel() * t.element_size() for k, t in kept.items() if k != "outlier_dims") == len(x) * row_bytes(
        128, dtype
    )


def test_without_the_outliers_apart_8_bits_would_not_do():
    x = heavy()
    quiet = torch.ones(128, dtype=torch.bool)
    quiet[[3, 77]] = False
    scale = x.abs().amax(1, keepdim=True) / 127
    plain = (x / scale).round() * scale
    kept = expand(compress(x, "int8"), slice(None), torch.float32)
    assert unexplained(x[:, quiet], plain[:, quiet]) > 0.05
    assert unexplained(x[:, quiet], kept[:, quiet]) < 1e-3
    assert outliers_kept(128) == 2 and outliers_kept(5) == 1


def test_rows_of_zeros_stay_zeros_in_8_bits():
    assert expand(compress(torch.zeros(3, 4), "int8"), slice(None), torch.float32).equal(torch.zeros(3, 4))


def test_expanding_a_slice_does_not_give_the_file_away():
    kept = compress(heavy(), "float32")
    expand(kept, slice(0, 3), torch.float32).zero_()
    assert kept["activations"][:3].any()
