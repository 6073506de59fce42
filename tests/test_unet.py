"""The network has the layout of the published EDM checkpoints, and starts as the best linear denoiser."""

from dataclasses import replace

import pytest
import torch
from helpers import draw, tiny_network

from rdc.denoise import UNet, UNetConfig
from rdc.denoise.edm import EDMConfig, build, coefficients
from rdc.rng import randn

CIFAR = UNetConfig(augment_dim=9)  # the CIFAR-10 DDPM++ of EDM


@pytest.fixture(scope="module")
def cifar() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters; on the meta device, without memory."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in UNet(CIFAR).named_parameters()}


def block(inputs, outputs, attention=False, resample=False, emb=512):
    """Number of parameters of a residual block."""
    count = 2 * inputs + 9 * inputs * outputs + outputs + emb * outputs + outputs + 2 * outputs + 9 * outputs**2 + outputs
    count += inputs * outputs + outputs if resample or inputs != outputs else 0
    return count + (2 * outputs + 4 * outputs**2 + 4 * outputs if attention else 0)


def test_the_number_of_parameters_is_that_of_the_published_network(cifar):
    total = sum(torch.Size(shape).numel() for shape in cifar.values())
    c, w = 256, 128
    mapping = (10 * w + w) + 9 * w + (w * 4 * w + 4 * w) + (16 * w * w + 4 * w)
    encoder = (27 * w + w) + block(w, c) + 3 * block(c, c)
    encoder += block(c, c, resample=True) + 4 * block(c, c, attention=True)  # 16x16
    encoder += block(c, c, resample=True) + 4 * block(c, c)  # 8x8
    decoder = block(c, c, attention=True) + block(c, c) + 5 * block(2 * c, c)  # 8x8
    decoder += block(c, c, resample=True) + 4 * block(2 * c, c) + block(2 * c, c, attention=True)  # 16x16
    decoder += block(c, c, resample=True) + 4 * block(2 * c, c) + block(c + w, c)  # 32x32: the last skip is the first conv
    assert total == mapping + encoder + decoder + 2 * c + 27 * c + 3
    assert round(total / 1e6, 1) == 55.7


SHAPES = {
    "map_layer0.weight": (512, 128),
    "map_layer1.bias": (512,),
    "map_label.weight": (128, 10),
    "map_augment.weight": (128, 9),
    "enc.32x32_conv.weight": (128, 3, 3, 3),
    "enc.32x32_block0.norm0.weight": (128,),
    "enc.32x32_block0.conv0.weight": (256, 128, 3, 3),
    "enc.32x32_block0.skip.weight": (256, 128, 1, 1),
    "enc.32x32_block3.affine.weight": (256, 512),
    "enc.16x16_down.skip.weight": (256, 256, 1, 1),
    "enc.16x16_block0.qkv.weight": (768, 256, 1, 1),
    "enc.16x16_block3.proj.bias": (256,),
    "enc.8x8_down.conv0.weight": (256, 256, 3, 3),
    "enc.8x8_block3.norm1.bias": (256,),
    "dec.8x8_in0.qkv.weight": (768, 256, 1, 1),
    "dec.8x8_in1.conv1.weight": (256, 256, 3, 3),
    "dec.8x8_block4.conv0.weight": (256, 512, 3, 3),
    "dec.16x16_up.skip.bias": (256,),
    "dec.16x16_block4.qkv.weight": (768, 256, 1, 1),
    "dec.32x32_up.conv0.weight": (256, 256, 3, 3),
    "dec.32x32_block4.conv0.weight": (256, 384, 3, 3),
    "dec.32x32_aux_norm.weight": (256,),
    "dec.32x32_aux_conv.weight": (3, 256, 3, 3),
    "dec.32x32_aux_conv.bias": (3,),
}
ABSENT = ["enc.32x32_block1.skip.weight", "enc.8x8_block0.qkv.weight", "dec.8x8_in1.qkv.weight", "dec.16x16_block3.qkv.weight",
          "dec.32x32_block4.qkv.weight", "map_augment.bias"]  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_names_and_shapes(cifar, name):
    assert cifar[name] == SHAPES[name]


@pytest.mark.parametrize("name", ABSENT)
def test_what_the_published_network_lacks(cifar, name):
    assert name not in cifar


@pytest.mark.parametrize("patch", [1, 2])
def test_at_the_start_the_denoiser_shrinks(patch):
    denoiser = build(EDMConfig(UNetConfig(8, 2, 5, 16, (1, 2), 1, (4,), patch=patch), sigma_data=0.7), seed=1)
    z = randn((6, 2, 8, 8), 0)
    for sigma in (0.05, 0.7, 10.0):
        c_skip = 0.7**2 / (sigma**2 + 0.7**2)
        assert torch.allclose(denoiser(z, sigma), c_skip * z, rtol=0, atol=1e-3)


def test_coefficients_keep_unit_variance():
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    for data in (0.3, 0.5, 1.0):
        c_skip, c_out, c_in = coefficients(sigma, data)
        assert torch.allclose(c_in**2 * (data**2 + sigma**2), torch.ones_like(sigma))
        target = ((1 - c_skip) ** 2 * data**2 + c_skip**2 * sigma**2) / c_out**2
        assert torch.allclose(target, torch.ones_like(sigma))
        assert torch.allclose(c_skip, data**2 / (sigma**2 + data**2))  # the best linear denoiser


def test_label_minus_one_is_no_label(tiny_edm):
    z, sigma = randn((4, 1, 8, 8), 0), torch.tensor([0.1, 0.5, 1.0, 5.0])
    free = tiny_edm(z, sigma)
    assert torch.equal(tiny_edm(z, sigma, torch.full((4,), -1)), free)
    mixed = tiny_edm(z, sigma, torch.tensor([-1, 2, -1, 0]))
    assert torch.allclose(mixed[::2], free[::2], atol=1e-6) and not torch.allclose(mixed[1::2], free[1::2], atol=1e-3)


def test_all_classes_is_one_call_per_class(tiny_edm):
    z, sigma = randn((4, 1, 8, 8), 0), torch.tensor([0.1, 0.5, 1.0, 5.0])
    together = tiny_edm.all_classes(z, sigma)
    assert together.shape == (4, 3, 1, 8, 8)
    for k in range(3):
        assert torch.allclose(together[:, k], tiny_edm(z, sigma, torch.full((4,), k)), atol=1e-5)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_types_and_dependence(patch, channels):
    denoiser = tiny_network(channels=channels, patch=patch)
    z = draw((2, channels, 8, 8), 0, torch.float32)
    label = torch.tensor([0, 1])
    base = denoiser(z, 1.0, label)
    assert base.shape == z.shape and base.dtype == torch.float32 and denoiser.shape == (channels, 8, 8)
    assert not torch.allclose(denoiser(z, 1.0, label.flip(0)), base, atol=1e-4)
    assert not torch.allclose(
        denoiser.raw(z, torch.full((2, 1, 1, 1), 2.0), label), denoiser.raw(z, torch.ones(2, 1, 1, 1), label), atol=1e-4
    )
    moved = z.clone()
    moved[0, 0, 0, 0] += 0.5
    changed = (denoiser(moved, 1.0, label) - base).abs()
    assert changed[0, 0, 0, 0] > 1e-3 and float(changed[1].max()) < 1e-5


def test_a_bf16_network_keeps_the_type_of_its_input():
    full, half = tiny_network(), tiny_network().to(torch.bfloat16)
    for dtype in (torch.float32, torch.float64):
        z = draw((3, 1, 8, 8), 0, dtype)
        found = half(z, 0.5, torch.tensor([0, 1, 2]))
        assert found.dtype == dtype
        gap = (found - full(z.float(), 0.5, torch.tensor([0, 1, 2])).to(dtype)).abs().max()
        assert 0 < gap < 0.1
    for parameter in half.parameters():
        assert parameter.dtype == torch.bfloat16


def test_at_low_noise_a_bf16_network_returns_its_input():
    """The skip path is in the dtype of the input: rounding of the network is scaled by c_out, about sigma."""
    z = draw((3, 1, 8, 8), 0, torch.float32)
    half = tiny_network().to(torch.bfloat16)
    assert float((half(z, 1e-4) - z).abs().max()) < 1e-3


def test_a_resolution_that_does_not_fold_is_refused():
    with pytest.raises(ValueError, match="resolution 30 is not a multiple"):
        UNet(UNetConfig(resolution=30))
    with pytest.raises(ValueError, match="resolution 28.* = 8"):
        UNet(UNetConfig(resolution=28, patch=2))


def test_building_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    config = EDMConfig(UNetConfig(8, 1, 3, 8, (1,), 1, ()))
    a, b, c = build(config, 0), build(config, 0), build(config, 1)
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(a.parameters(), b.parameters(), c.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q, _ in pairs) and not all(torch.equal(p, r) for p, _, r in pairs)


def test_inner_channels_lie_between_the_convolutions_of_a_block():
    shape = UNetConfig(8, 1, 3, 16, (1, 2), 1, (4,))
    thin, even = UNet(replace(shape, inner=(4, 8))), replace(shape, channel_mult=(2, 2))
    same, wide = (UNet(c).state_dict() for c in (replace(even, inner=(32, 32)), even))
    assert {k: v.shape for k, v in same.items()} == {k: v.shape for k, v in wide.items()}
    assert thin.enc["8x8_block0"].conv0.weight.shape == (4, 16, 3, 3) and thin.dec["4x4_in0"].conv1.weight.shape == (32, 8, 3, 3)
    assert thin(draw((2, 1, 8, 8), dtype=torch.float32), torch.zeros(2)).shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="one entry for each of the 2 levels"):
        replace(shape, inner=(4,))
