"""Denoisers of other libraries: stand-ins of their formats, against their equations."""

import os
import pickle
import re
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest
import slow_networks
import torch
from helpers import draw
from torch import nn

import rdc
from rdc.denoise.adapters import convert_guided_diffusion, from_diffusers, load_diffusers
from rdc.denoise.checkpoints import CheckpointError, read_checkpoint
from rdc.denoise.parameterisation import log_sigma_of, schedule_of
from rdc.denoise.unet import UNetConfig
from rdc.rng import randn

UNET = UNetConfig(4, 2, 5, 128, (1, 1), 1, (2,))
SIZES = slow_networks.guided_shapes(5)


def stored(path, **changes):
    """A state dict of guided-diffusion."""
    tensors = {name: randn(shape, "guided", name) / max(1, int(np.prod(shape[1:]))) ** 0.5 for name, shape in SIZES.items()}
    tensors |= changes
    torch.save({name: value for name, value in tensors.items() if value is not None}, path)
    return {name: value.double().numpy() for name, value in tensors.items() if value is not None}


@pytest.mark.parametrize(
    ("new", "heads", "schedule"), [(False, None, "linear"), (True, None, "cosine"), (False, 4, "linear"), (True, 4, "cosine")]
)
def test_guided_diffusion_is_its_equations(tmp_path, new, heads, schedule):
    p = stored(tmp_path / "x.pt")
    out = convert_guided_diffusion(tmp_path / "x.pt", tmp_path / "x.safetensors", UNET, schedule, new, heads, "mine")
    denoiser = rdc.load_denoiser(out, dtype=torch.float64, data="mine")
    time, label = np.array([0, 400, 990]), torch.tensor([4, 0, 2])
    sigma = log_sigma_of(schedule_of(schedule))[time].exp()
    wide = sigma[:, None, None, None]
    z = wide * (2 * draw((3, 2, 4, 4), 1) - 1)
    noise = slow_networks.guided(p, (z / (1 + wide**2).sqrt()).numpy(), time, label.numpy(), heads or 2, new)[:, :2]
    wanted = z - wide * torch.from_numpy(noise)
    assert float(((denoiser(z, sigma, label) - wanted).abs() / wide.clamp(min=1)).max()) < 1e-9 and np.abs(noise).max() > 0.1
    assert not denoiser.unlabelled and read_checkpoint(out, "published denoiser")[1]["source"] == "x.pt"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"time_embed.0.weight": None}, "the tensor time_embed.0.weight is missing, of 1 in all"),
        ({"input_blocks.2.0.op.weight": torch.zeros(1)}, "the tensor input_blocks.2.0.op.weight is left over"),
        ({"middle_block.1.qkv.weight": torch.zeros(5, 5, 1)}, "another network"),
        ({"out.0.weight": torch.zeros(64)}, "out_norm.weight is .64,. torch.float32, not .128,."),
        ({"label_emb.weight": torch.tensor(1.0)}, "does not fit"),
        ({"out.0.bias": torch.full((128,), float("nan"))}, "NaN or infinite"),
    ],
)
def test_other_networks_of_guided_diffusion_are_named(tmp_path, changes, says):
    stored(tmp_path / "x.pt", **changes)
    with pytest.raises(CheckpointError, match=says) as error:
        convert_guided_diffusion(tmp_path / "x.pt", tmp_path / "x.safetensors", UNET)
    assert "\n" not in str(error.value) and not (tmp_path / "x.safetensors").exists()


class Call:
    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.system, (f"touch {self.flag}",)


@pytest.mark.parametrize("made", ["call", "torch call", "text", "list", "nothing"])
def test_a_hostile_state_dict_runs_nothing(tmp_path, made):
    path, flag = tmp_path / "x.pt", tmp_path / "flag"
    if made == "call":
        path.write_bytes(pickle.dumps(Call(flag)))
    elif made == "torch call":
        torch.save({"a": Call(flag)}, path)
    elif made == "text":
        path.write_text("404")
    elif made == "list":
        torch.save([torch.zeros(1)], path)
    with pytest.raises(CheckpointError, match="no state dict") as error:
        convert_guided_diffusion(path, tmp_path / "x.safetensors", UNET)
    assert "\n" not in str(error.value) and not flag.exists()
    assert "call" not in made or re.search("unsupported (GLOBAL|operand)", str(error.value), re.IGNORECASE)


def test_sizes_of_guided_diffusion_that_are_not_known(tmp_path):
    narrow = UNetConfig(4, 2, 5, 32, (1, 1), 1, (2,))
    stored(tmp_path / "x.pt")
    for unet, heads, says in ((narrow, None, "too narrow"), (UNET, 3, "unknown network 'adm with 3")):
        with pytest.raises(ValueError, match=says):
            convert_guided_diffusion(tmp_path / "x.pt", tmp_path / "x.safetensors", unet, heads=heads)


# diffusers


class UNet2DModel(nn.Module):
    """A stand-in with its interface: ``network(sample, timestep, class_labels).sample``."""

    def __init__(self, classes=3, outputs=2, **config):
        super().__init__()
        self.config = SimpleNamespace(**{"sample_size": 4, "in_channels": 2, "out_channels": outputs, "class_embed_type": None,
                                         "num_class_embeds": classes, **config})  # fmt: skip
        self.class_embedding = nn.Embedding(classes, 1) if classes else None
        self.last = nn.Conv2d(2, outputs, 1)

    def forward(self, sample, timestep, class_labels=None):
        assert (class_labels is None) == (self.class_embedding is None), "class_labels"
        x = self.last(sample) + timestep[:, None, None, None] / 1000
        return SimpleNamespace(sample=x if class_labels is None else x + self.class_embedding(class_labels)[:, :, None, None])


@pytest.mark.parametrize("outputs", [2, 4])
def test_a_network_of_diffusers_is_a_denoiser(outputs):
    alphas = (1 - torch.linspace(0.001, 0.03, 50)).cumprod(0)
    unet = UNet2DModel(outputs=outputs).double()
    denoiser = from_diffusers(unet, alphas)
    label, time = torch.tensor([2, 0]), torch.tensor([7, 40])
    sigma = ((1 - alphas.double()) / alphas.double()).sqrt()[time]
    wide = sigma[:, None, None, None]
    z = 2 * draw((2, 2, 4, 4), 2) - 1
    wanted = z - wide * unet(z / (1 + wide**2).sqrt(), time, label).sample[:, :2]
    assert torch.allclose(denoiser(z, sigma, label), wanted, rtol=0, atol=1e-6)
    assert denoiser.shape == (2, 4, 4) and denoiser.num_classes == 3 and denoiser.all_classes(z, sigma).shape == (2, 3, 2, 4, 4)
    with pytest.raises(ValueError, match="trained with labels only"):
        denoiser(z, sigma)


def test_an_unconditional_network_of_diffusers():
    denoiser = from_diffusers(UNet2DModel(classes=None), schedule_of("linear"))
    assert denoiser.unlabelled and denoiser.num_classes == 0 and denoiser(draw((1, 2, 4, 4)).float(), 0.5).shape == (1, 2, 4, 4)


@pytest.mark.parametrize(
    ("config", "prediction", "says"),
    [
        ({}, "v_prediction", "predicts v_prediction"),
        ({"sample_size": (4, 8)}, "epsilon", "one sample_size"),
        ({"class_embed_type": "timestep"}, "epsilon", "num_class_embeds or none"),
    ],
)
def test_other_networks_of_diffusers_are_named(config, prediction, says):
    with pytest.raises(ValueError, match=says):
        from_diffusers(UNet2DModel(**config), schedule_of("linear"), prediction)


def test_a_folder_is_read_by_diffusers_if_it_is_there(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'rdc\[diffusers\]'"):
        load_diffusers(tmp_path)
    asked = {}

    def reader(found):
        def from_pretrained(folder, **given):
            asked[given["subfolder"]] = folder, given.get("use_safetensors")
            return found

        return SimpleNamespace(from_pretrained=from_pretrained)

    module = types.ModuleType("diffusers")
    module.UNet2DModel = reader(UNet2DModel())
    module.DDPMScheduler = reader(
        SimpleNamespace(alphas_cumprod=schedule_of("linear").float(), config=SimpleNamespace(prediction_type="epsilon"))
    )
    monkeypatch.setitem(sys.modules, "diffusers", module)
    assert load_diffusers(tmp_path, "mine").config.data == "mine"
    assert asked == {"unet": (tmp_path, True), "scheduler": (tmp_path, None)}
