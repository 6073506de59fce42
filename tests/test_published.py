"""The published networks: names, shapes and totals, their equations, and the other parameterisations."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import slow_networks
import torch
from helpers import draw
from torch import nn

import rdc
from rdc.denoise import UNet, UNetConfig, checkpoints
from rdc.denoise.checkpoints import CheckpointError, read_checkpoint
from rdc.denoise.edm import EDM, EDMConfig
from rdc.denoise.parameterisation import STEPS, Reparameterised, log_sigma_of, schedule_of
from rdc.denoise.published import KIND, PublishedConfig, build_published, load_denoiser, save_published
from rdc.denoise.published_unet import FORMS, PublishedUNet
from rdc.models import build as build_model
from rdc.models.parts import diffusion_classifier
from rdc.models.weights import checkpoints_of
from rdc.rng import randn

CIFAR = UNetConfig(augment_dim=9)
IMAGENET = UNetConfig(64, 3, 1000, 192, (1, 2, 3, 4), 3, (32, 16, 8))
#: Numbers of parameters of the networks of Karras et al. (2022): 56, 56 and 296 million in their tables.
TOTALS = {
    ("ddpm++", 10): 55_735_299,
    ("ddpm++", 0): 55_733_891,
    ("ncsn++", 10): 56_400_643,
    ("ncsn++", 0): 56_397_827,
    ("adm", 1000): 295_899_267,
}
SHAPES = {
    "ncsn++": {
        "map_noise.freqs": (128,), "map_label.weight": (256, 10), "map_augment.weight": (256, 9), "map_layer0.weight": (512, 256),
        "enc.16x16_aux_residual.weight": (256, 3, 3, 3), "enc.8x8_aux_residual.weight": (256, 256, 3, 3),
        "enc.16x16_down.skip.weight": (256, 256, 1, 1), "dec.32x32_aux_conv.weight": (3, 256, 3, 3),
        "dec.32x32_up.conv0.weight": (256, 256, 3, 3), "enc.32x32_block0.affine.weight": (256, 512),
    },
    "adm": {
        "map_label.weight": (768, 1000), "map_layer0.weight": (768, 192), "map_layer1.bias": (768,),
        "enc.64x64_conv.weight": (192, 3, 3, 3), "enc.64x64_block2.affine.weight": (384, 768),
        "enc.32x32_down.conv0.weight": (192, 192, 3, 3), "enc.32x32_block0.qkv.weight": (1152, 384, 1, 1),
        "dec.8x8_in0.proj.weight": (768, 768, 1, 1), "dec.8x8_block0.conv0.weight": (768, 1536, 3, 3),
        "dec.16x16_block0.qkv.bias": (1728,), "dec.64x64_block3.skip.weight": (192, 384, 1, 1),
        "out_norm.weight": (192,), "out_conv.weight": (3, 192, 3, 3),
    },
}  # fmt: skip
ABSENT = {
    "ncsn++": ["enc.32x32_aux_residual.weight", "dec.16x16_block3.qkv.weight", "map_noise.weight"],
    "adm": ["map_label.bias", "enc.32x32_down.skip.weight", "dec.64x64_up.skip.weight", "enc.64x64_block0.qkv.weight",
            "dec.8x8_in1.qkv.weight", "map_augment.weight", "dec.64x64_aux_conv.weight"],
}  # fmt: skip


def shapes(config, form):
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in PublishedUNet(config, form).state_dict().items()}


@pytest.mark.parametrize(("form", "classes"), TOTALS)
def test_the_number_of_parameters(form, classes):
    config = replace(IMAGENET if form == "adm" else CIFAR, label_dim=classes)
    found = shapes(config, form)
    assert sum(math.prod(shape) for name, shape in found.items() if name != "map_noise.freqs") == TOTALS[form, classes]


@pytest.mark.parametrize("form", SHAPES)
def test_names_and_shapes(form):
    found = shapes(IMAGENET if form == "adm" else CIFAR, form)
    assert {name: found.get(name) for name in SHAPES[form]} == SHAPES[form]
    assert not found.keys() & set(ABSENT[form])


def test_ddpm_is_the_network_of_the_book():
    with torch.device("meta"):
        assert shapes(CIFAR, "ddpm++") == {name: tuple(value.shape) for name, value in UNet(CIFAR).state_dict().items()}
    config = small("ddpm++")
    new, old = filled(PublishedUNet(config, "ddpm++")), UNet(config).double()
    old.load_state_dict(new.state_dict())
    x, noise, label = inputs(config)
    assert torch.allclose(new(x, noise, label), old(x, noise, label), rtol=0, atol=1e-6)


def small(form):
    """Two levels of one block; in ADM the second has two heads."""
    if form.startswith("adm"):
        return UNetConfig(8, 2, 3, 64, (1, 2), 1, (4,))
    return UNetConfig(8, 2, 3, 8, (1, 2), 1, (8,), augment_dim=9)


def filled(network):
    """In float64, with weights of which none is nearly zero."""
    for name, value in network.state_dict().items():
        value.copy_(randn(tuple(value.shape), "published", name) / max(1, value[0].numel()) ** 0.5)
    return network.double().eval().requires_grad_(False)


def inputs(config):
    x = 2 * draw((2, config.channels, config.resolution, config.resolution), 1) - 1
    return x, torch.tensor([-0.7, 1.1], dtype=torch.float64), torch.eye(config.label_dim, dtype=torch.float64)[[2, 0]]


@pytest.mark.parametrize("form", FORMS)
def test_the_networks_are_their_equations(form):
    config = small(form)
    network = filled(PublishedUNet(config, form))
    p = {name: value.double().numpy() for name, value in network.state_dict().items()}
    given = inputs(config)
    numbers = [value.numpy() for value in given]
    if form.startswith("adm"):
        wanted = slow_networks.adm(p, *numbers, None if form == "adm" else 4)
    else:
        wanted = slow_networks.song(p, *numbers, form == "ncsn++")
    found = network(*given).numpy()
    assert np.abs(wanted).max() > 0.1 and np.abs(found - wanted).max() < 1e-10


def test_attention_needs_as_many_channels_as_a_head_has():
    with torch.device("meta"):
        names = PublishedUNet(UNetConfig(8, 1, 2, 32, (1, 2), 1, (8, 4)), "adm").state_dict()
    assert "enc.4x4_block0.qkv.weight" in names and "enc.8x8_block0.qkv.weight" not in names


@pytest.mark.parametrize("bad", [{"patch": 2}, {"heads": 3}, {"inner": (4, 4)}, {"resolution": 7}])
def test_what_a_published_network_has_not(bad):
    with pytest.raises(ValueError, match="no patches"):
        PublishedUNet(replace(small("ncsn++"), **bad), "ncsn++")
    with pytest.raises(ValueError, match="unknown network 'x'; there are ddpm"):
        PublishedUNet(small("adm"), "x")


def test_frequencies_keep_their_type():
    network = PublishedUNet(small("ncsn++"), "ncsn++")
    network.map_noise.freqs.copy_(16 * randn((8,), "freqs"))
    kept = network.map_noise.freqs.clone()
    network.to(torch.bfloat16).to(torch.float64)
    assert network.map_noise.freqs.dtype == torch.float32 and torch.equal(network.map_noise.freqs, kept)
    assert network.map_layer0.weight.dtype == torch.float64


# Parameterisations


class Seen(nn.Module):
    """A network that remembers what it was asked, and answers ``a x + b``."""

    def __init__(self, a=0.3, b=0.2):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a, dtype=torch.float64)), b

    def forward(self, x, noise, label):
        self.x, self.noise, self.label = x, noise, label
        return self.a * x + self.b


def vp_sigma(t):
    """Song et al. (2021): ``sigma^2 + 1 = exp(int beta)``."""
    return ((19.9 * t**2 / 2 + 0.1 * t).exp() - 1).sqrt()


CASES = {
    "vp": (vp_sigma(torch.tensor([0.001, 0.2, 0.9], dtype=torch.float64)), [0.999, 199.8, 899.1]),
    "ve": (torch.tensor([0.02, 1.0, 80.0], dtype=torch.float64), [math.log(0.01), math.log(0.5), math.log(40)]),
    "ddpm-linear": (log_sigma_of(schedule_of("linear"))[[0, 500, 999]].exp(), [0, 500, 999]),
    "ddpm-cosine": (log_sigma_of(schedule_of("cosine"))[[0, 500, 999]].exp(), [0, 500, 999]),
}


@pytest.mark.parametrize("sigma_data", [0.5, 0.9])
@pytest.mark.parametrize("kind", CASES)
def test_the_denoiser_of_a_parameterisation_is_that_of_its_equation(kind, sigma_data):
    network = Seen()
    denoiser = EDM(Reparameterised(network, kind, sigma_data).double(), EDMConfig(small("adm"), sigma_data))
    sigma, times = CASES[kind]
    z = sigma[:, None, None, None] * (2 * draw((3, 2, 8, 8), 3) - 1)
    found = denoiser(z, sigma, torch.tensor([0, 1, 2]))
    wide = sigma[:, None, None, None]
    scaled = z if kind == "ve" else z / (1 + wide**2).sqrt()
    wanted = z + (1 if kind == "ve" else -1) * wide * (0.3 * scaled + 0.2)
    assert torch.allclose(network.x, scaled, rtol=1e-9, atol=1e-9) and torch.equal(network.label, torch.eye(3))
    assert torch.allclose(network.noise, torch.tensor(times, dtype=torch.float64), rtol=1e-9, atol=1e-6)
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-9)


def test_schedules_are_those_of_their_papers():
    linear, cosine = schedule_of("linear"), schedule_of("cosine")
    assert len(linear) == len(cosine) == STEPS
    assert math.isclose(float(linear[0]), 1 - 1e-4) and math.isclose(float(1 - linear[-1] / linear[-2]), 0.02)
    t = torch.arange(1, 990, dtype=torch.float64)
    f = ((t / 1000 + 0.008) / 1.008 * math.pi / 2).cos() ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert torch.allclose(cosine[:989], f, rtol=1e-9) and math.isclose(float(1 - cosine[-1] / cosine[-2]), 0.999)
    with pytest.raises(ValueError, match="unknown schedule 'x'"):
        schedule_of("x")
    with pytest.raises(ValueError, match="must fall from below 1"):
        log_sigma_of(torch.tensor([0.5, 0.7]))


def test_between_steps_and_beyond_them():
    log_sigma = log_sigma_of(schedule_of("linear"))
    network = Reparameterised(Seen(), "ddpm-linear")
    between = 0.25 * log_sigma[7] + 0.75 * log_sigma[8]
    asked = torch.stack([log_sigma[0] - 3, between, log_sigma[-1] + 3])
    assert torch.allclose(network.condition(asked), torch.tensor([0.0, 7.75, 999.0], dtype=torch.float64), atol=1e-9)


def test_a_denoiser_in_bf16_keeps_its_steps():
    config = PublishedConfig(EDMConfig(small("adm")), "adm", "ddpm-cosine")
    full = build_published(config)
    filled(full.model.network)
    half = build_published(config)
    half.model.network.load_state_dict(full.model.network.state_dict())
    half = half.to(torch.bfloat16)
    z = 2 * draw((2, 2, 8, 8), 5, torch.float32) - 1
    gap = (half(z, 0.3, torch.tensor([0, 1])) - full(z.double(), 0.3, torch.tensor([0, 1]))).abs().max()
    assert 0 < gap < 0.1 and half.model.steps.log_sigma.dtype == torch.float64


# Files


@pytest.mark.parametrize("kind", ["edm", "vp"])
@pytest.mark.parametrize("form", FORMS)
def test_a_file_comes_back(tmp_path, form, kind):
    config = PublishedConfig(EDMConfig(small(form), data="cifar10", unlabelled=False), form, kind)
    built = build_published(config)
    network = filled(built.get_submodule(config.part))
    path = tmp_path / "x.safetensors"
    save_published(path, config, network.state_dict(), source="y")
    found = rdc.load_denoiser(path, dtype=torch.float64, data="cifar10-20")
    z, label = 2 * draw((2, 2, 8, 8), 7) - 1, torch.tensor([2, 0])
    assert torch.equal(found(z, 0.6, label), built(z, 0.6, label)) and not found.unlabelled
    with pytest.raises(ValueError, match="trained with labels only"):
        found(z, 0.6)
    with pytest.raises(CheckpointError, match="data set 'cifar10', not 'digits'"):
        load_denoiser(path, data="digits")
    if config.plain:
        assert asdict(checkpoints.load_denoiser(path).config) == asdict(config.edm)
    else:
        with pytest.raises(CheckpointError, match="holds published denoiser, not a denoiser"):
            checkpoints.load_denoiser(path)


@pytest.mark.parametrize(("form", "kind"), [("ncsn++", "ve"), ("adm", "ddpm-cosine"), ("ddpm++", "edm")])
def test_a_published_network_is_the_denoiser_of_a_model(tmp_path, form, kind):
    config = PublishedConfig(EDMConfig(small(form), data="cifar10", unlabelled=False), form, kind)
    network = filled(build_published(config).get_submodule(config.part))
    path = tmp_path / "x.safetensors"
    save_published(path, config, network.state_dict())
    x = draw((2, 2, 8, 8), 7).float()
    wanted = diffusion_classifier(load_denoiser(path), "elbo", 2, (0.1, 2.0), "shared", 1, 0, None)(x)
    options = {"denoiser": str(path), "levels": 2, "sigma_min": 0.1, "sigma_max": 2.0}
    assert torch.allclose(build_model("dc", "cifar10", **options)(x), wanted, rtol=0.1)
    assert build_model(str(path), "cifar10", levels=2)(x).shape == wanted.shape
    (digest,) = checkpoints_of("dc", "cifar10", options).values()
    assert read_checkpoint(path, KIND if form != "ddpm++" else "denoiser")[1]["tensors_sha256"].startswith(digest)
    assert checkpoints_of(str(path), "cifar10", {}) == {"x": digest}
    with pytest.raises(ValueError, match="data set 'cifar10', not 'digits'"):
        build_model("dc", "digits", **options)


def test_shipped_denoisers_come_the_old_way():
    a, b = rdc.load_denoiser("digits"), checkpoints.load_denoiser("digits")
    assert type(a) is type(b) and a.config == b.config
    with pytest.raises(CheckpointError, match="unknown checkpoint 'nothing'"):
        rdc.load_denoiser("nothing")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        rdc.load_denoiser("nothing.safetensors")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = rdc.nothing


def test_a_header_that_lies_costs_nothing(tmp_path):
    config = PublishedConfig(EDMConfig(small("adm")), "adm")
    path, tensors = tmp_path / "x.safetensors", filled(build_published(config).model).state_dict()
    lie = asdict(replace(config, edm=EDMConfig(replace(config.edm.unet, model_channels=10**6))))
    checkpoints.write_checkpoint(path, tensors, kind="published denoiser", config=lie)
    with pytest.raises(CheckpointError, match="does not fit its own configuration") as error:
        load_denoiser(path)
    assert "\n" not in str(error.value)
    checkpoints.write_checkpoint(path, tensors, kind="published denoiser", config={**asdict(config), "network": "x"})
    with pytest.raises(CheckpointError, match="unknown network 'x'"):
        load_denoiser(path)
