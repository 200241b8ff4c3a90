import pytest
import torch
from torch import nn

import patchclamp as pc
from patchclamp.organisms.networks import CNN, MLP, CNNConfig, MLPConfig, ToyAutoencoder, ToyAutoencoderConfig

NETWORKS = [
    (MLP, MLPConfig(widths=(6, 5, 4, 3)), (6,), "layers.0"),
    (MLP, MLPConfig(widths=(6, 5, 3), activation="gelu", bias=False), (6,), "layers.0"),
    (CNN, CNNConfig(channels=(2, 3, 4, 5), classes=3, image_size=5), (2, 5, 5), "layers.1"),
    (ToyAutoencoder, ToyAutoencoderConfig(features=5, hidden=2, importance=[1, 0.5, 0.2, 0.1, 0.1]), (5,), "encoder"),
]


@pytest.mark.parametrize(("kind", "config", "shape", "module"), NETWORKS)
def test_a_saved_network_comes_back_and_is_recorded_and_patched(kind, config, shape, module, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = kind(config).eval()
    network.save_pretrained(tmp_path)
    back = kind.from_pretrained(tmp_path).eval()
    inputs, others = torch.randn(2, 4, *shape, generator=torch.Generator().manual_seed(1))
    expected = network(inputs).logits
    assert torch.equal(back(inputs).logits, expected)

    model, site = pc.wrap(back), f"module:{module}"
    run = model.run({"inputs": inputs}, record=site)
    assert torch.equal(run.logits, expected)
    assert torch.equal(model.run(inputs).logits, expected)
    other = model.run(others, record=site)
    assert not torch.equal(other.logits, expected)
    assert torch.equal(model.run(others, do=[pc.edit(site, lambda h: run[site])]).logits, expected)


def test_an_mlp_computes_what_its_layers_say():
    network = MLP(MLPConfig(widths=(6, 5, 4, 3)))
    plain = nn.Sequential(network.layers[0], nn.ReLU(), network.layers[1], nn.ReLU(), network.layers[2])
    inputs = torch.randn(7, 2, 3)
    torch.testing.assert_close(network(inputs).logits, plain(inputs.reshape(7, 6)))
    assert MLP(MLPConfig(widths=(6, 5, 3), bias=False)).layers[0].bias is None


def test_layers_start_as_pytorch_starts_them():
    weight = MLP(MLPConfig(widths=(100, 400, 2))).layers[0].weight
    assert weight.abs().max() <= 0.1
    assert weight.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)


def test_the_same_image_in_three_shapes_gives_the_same_logits():
    network, image = CNN(CNNConfig(channels=(1, 2, 3))), torch.randn(4, 8, 8)
    expected = network(image).logits
    assert torch.equal(network(image[:, None]).logits, expected)
    assert torch.equal(network(image.flatten(1)).logits, expected)


def test_the_toy_autoencoder_is_relu_of_w_transposed_w_x_plus_b():
    network = ToyAutoencoder(ToyAutoencoderConfig(features=5, hidden=2, importance=[1, 0.5, 0.2, 0.1, 0.1]))
    x = torch.rand(8, 5)
    w = network.encoder.weight
    expected = torch.relu(x @ w.T @ w + network.bias)
    output = network(x, labels=x)
    torch.testing.assert_close(output.logits, expected)
    weights = torch.tensor([1, 0.5, 0.2, 0.1, 0.1])
    torch.testing.assert_close(output.loss, ((x - expected) ** 2 @ weights).mean())


def test_labels_choose_the_loss():
    network, x = MLP(MLPConfig(widths=(6, 5, 3))), torch.randn(4, 6)
    logits = network(x).logits
    classes, targets = torch.tensor([0, 2, 1, 1]), torch.randn(4, 3)
    torch.testing.assert_close(network(x, labels=classes).loss, nn.functional.cross_entropy(logits, classes))
    torch.testing.assert_close(network(x, labels=targets).loss, nn.functional.mse_loss(logits, targets))
    assert network(x).loss is None


def test_wrong_settings_and_inputs_say_what_was_wrong():
    with pytest.raises(TypeError, match="no 'widht'; did you mean 'widths'"):
        MLPConfig(widht=(3, 4))
    with pytest.raises(ValueError, match="no activation is called 'rely'"):
        MLPConfig(activation="rely")
    with pytest.raises(ValueError, match="widths must be 2 or more"):
        MLPConfig(widths=(3,))
    with pytest.raises(ValueError, match="2 weights for 5 features"):
        ToyAutoencoderConfig(importance=[1, 2])
    with pytest.raises(ValueError, match=r"\[2, 5\] are not \[batch, 6\]"):
        MLP(MLPConfig(widths=(6, 3)))(torch.randn(2, 5))
    with pytest.raises(ValueError, match="not images"):
        CNN(CNNConfig())(torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"not \[batch, 5\]"):
        ToyAutoencoder(ToyAutoencoderConfig())(torch.randn(2, 6))
