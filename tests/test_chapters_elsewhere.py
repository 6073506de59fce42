"""The cells of chapters 6 to 10 on another device, in order and at toy size: nothing is left on the CPU.

Small digits and closed-form denoisers stand in for the data and the networks, and the claims about numbers are not checked. With
``--device cuda`` the other device is a GPU, otherwise that of ``tests/remote.py``, which needs no hardware.
"""

import contextlib
import io
from pathlib import Path
from typing import Any
from unittest import mock

import jaxtyping
import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from device_reader import code
from helpers import tiny_network
from test_devices import Elsewhere, elsewhere  # noqa: F401, a fixture
from torch import Tensor, nn

import rdc.classify.reference
import rdc.data
import rdc.denoise.checkpoints
import rdc.guide
import rdc.models
import rdc.notebook
from rdc.denoise import EDMConfig, UNetConfig
from rdc.denoise.base import to_model
from rdc.denoise.multihead import build_multihead
from rdc.guide.classifier import ClassifierConfig, build_classifier

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
IMAGES = 64  # of each split: one batch of training
TOY: dict[str, dict[str, Any]] = {
    "06_likelihood_maximization": {"n_move": 2},
    "06b_rdc_attacks": {
        **{"count": 2, "n_attack": 2, "steps": 1, "eps": 8 / 255, "lm_steps": [1], "n_fresh": 1, "eot": 1, "draws": 1},
    },
    "06c_rdc_parts": {"count": 2, "eps": 8 / 255, "n_static": 3},
    "06e_exact_likelihoods": {"n_train": 30, "n_lab": 3, "eps_lab": 24 / 255},
    "06f_gradient_of_lm": {"count": 2, "n_jacobian": 2, "lm_steps": [1]},
    "06g_beside_diffpure": {"count": 2, "n_purify": 1},
    "07_multihead": {"count": 2, "n_heads": 4, "sigmas": [0.2, 1.6]},
    "07b_training_heads": {"steps": 1, "train_steps": 1, "n_digits_attack": 2, "n_digits_teacher": 2},
    "07c_heads_at_work": {
        **{"count": 2, "n_clean": 6, "n_attack": 2, "steps": 1, "eps": [8 / 255], "sampler_steps": 2, "per_class": 1},
        **{"n_frechet": 20},
    },
    "07d_similar_heads": {"n_heads": 4, "sigmas": [0.2, 1.6], "n_feature": 2},
    "08_gradient_randomness": {"count": 2, "n": 1, "repeats": 4, "eot": [1, 2], "level_counts": [2]},
    "08b_loss_and_size": {"count": 2, "n": 1, "repeats": 2},
    "08c_smooth_and_quiet": {
        **{"count": 2, "n": 1, "repeats": 2, "n_smooth": 1, "path_steps": 2, "draws": 2, "steps": 1, "eps": 16 / 255},
    },
    "08d_known_noise": {"count": 2, "draws": 2, "n_attack": 1, "steps": 1, "eps": 16 / 255, "lm_count": 1},
    "08e_compression": {"count": 2, "n": 1, "n_smooth": 1},
    "08f_fewer_bits": {"n": 1},
    "09_certification": {
        **{"radii": [0.25, 0.5, 0.75, 1.0], "toy_n": 30, "toy_runs": 20},
    },
    "09b_noised": {
        **{"gap_points": 5, "gap_counts": [2, 4, 8]},
    },
    "09c_fast_certificates": {"n_images": 60, "n_race": 3, "live_n0": 4, "live_n": 60},
    "09d_certified_accuracy": {},
    "09e_factors": {},
    "09f_sift": {"n_images": 60, "n_sift": 6, "many_classes": 20},
    "09g_lipschitz": {"n_slopes": 2},
    "09h_inner_noise": {"n_images": 60, "n_digits": 6, "n_noise": 4},
    "09i_early_stopping": {"peek_runs": 20, "peek_n": 60, "plan_n": 400, "plan_runs": 10},
    "10b_guidance_classifiers": {"n_few": 2},
    "10c_guidance_samples": {"pairs_per_class": 1, "path_levels": 2, "n_wide": 2},
    "10d_gradient_argument": {"n_ripple": 2},
    "10e_robust_at_noise": {"n_near": 2},
    "10f_guide_gradients": {"levels": [0.3, 3.0], "n_climb": 2},
    "10g_alignment": {"n_align": 2},
    "10h_sample_numbers": {"pairs_per_class": 2, "path_levels": 2, "floor_sizes": [10, 20]},
}
#: Cells that take long at any size, and only compute on the CPU: the chapter, and how the cell begins.
LEFT_OUT = {
    ("06e_exact_likelihoods", "reference = pathwise_gradient("),  # thousands of draws behind a reference
    ("06e_exact_likelihoods", 'claim(cosine["pairs"] > 0.9'),
    ("06e_exact_likelihoods", "grid = torch.linspace("),  # a quadrature with as many nodes as it needs
    ("06e_exact_likelihoods", 'claim(0.05 < spread["elbo"]'),
    ("09c_fast_certificates", "x_race = noisy_digits("),  # weights learned for 32 of 124 levels, and what is said of them
    ("09c_fast_certificates", "learn_from, raced = "),
    ("09c_fast_certificates", "fig, ax = plt.subplots(figsize=(5.5, 3.4))\n\n\ndef share_same("),
    ("09c_fast_certificates", "bayes = digits.log_density(to_model(x_race"),
    ("09c_fast_certificates", "claim(\n    share_same(predicted"),
}
load, load_denoiser, build = rdc.data.load, rdc.denoise.checkpoints.load_denoiser, rdc.models.build
reference_network = rdc.classify.reference.reference_network


class Bells(nn.Module):
    """The best denoiser of classes that are normal distributions around the mean digits, some wider; cheap, and nowhere flat."""

    one_pass, num_classes, shape = True, 10, (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        digits = load("digits", "train")
        means = [to_model(digits.x[digits.y == k]).mean(0) for k in range(10)]
        self.register_buffer("means", torch.stack([*means, torch.stack(means).mean(0)]))
        self.register_buffer("variance", torch.linspace(0.2, 0.4, 11).reshape(-1, 1, 1, 1))

    def forward(self, z: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
        """``D(z, sigma, y)``."""
        label = torch.full((len(z),), 10, device=z.device) if label is None else label
        return self.answer(z, sigma, self.means[label], self.variance[label])

    def all_classes(self, z: Tensor, sigma: Tensor | float) -> Tensor:
        """``D`` of every class."""
        return self.answer(z[:, None], sigma, self.means[:-1], self.variance[:-1])

    @staticmethod
    def answer(z: Tensor, sigma: Tensor | float, mean: Tensor, variance: Tensor) -> Tensor:
        """The mean of a class given a noisy image of it."""
        s = torch.as_tensor(sigma, device=z.device, dtype=z.dtype).reshape(-1, *[1] * (z.ndim - 1))
        return (mean + (z - mean) * variance / (variance + s**2)).to(z)


def heads() -> nn.Module:
    """A small multi-head network for ten classes."""
    unet = UNetConfig(8, 1, 0, 8, (1,), 1, (), heads=11)
    return build_multihead(EDMConfig(unet, 0.6, "digits"), 0).eval().requires_grad_(False)


def replaced(chapter: str) -> dict[tuple[Any, str], Any]:
    """What the cells import, and what they get instead."""

    def few(name: str, split: str) -> Any:
        return load("digits", split)[:IMAGES]

    def small(name: str | Path, device: Any = "cpu", dtype: Any = torch.float32, **options: Any) -> Any:
        if Path(name).exists():
            return load_denoiser(name, device, dtype, **options)
        networks = chapter.startswith("07")
        net = (heads() if "multihead" in str(name) else tiny_network(num_classes=10)) if networks else Bells()
        return net.to(device)

    def small_model(name: str, data: str = "digits", device: Any = "cpu", **options: Any) -> nn.Module:
        return build(name, "digits", device, **options)

    def guide(file: str | Path, device: Any = "cpu", dtype: Any = torch.float32) -> nn.Module:
        config = ClassifierConfig(UNetConfig(8, 1, 0, 8, (1,), 1, ()), 10, 0.6, "digits")
        return build_classifier(config).to(device, dtype).eval().requires_grad_(False)

    def reference(name: str, data: str, device: Any = "cpu") -> nn.Module:
        return reference_network(name, "digits", device)

    quiet = {(rdc.notebook, name): mock.Mock() for name in ("check_parameters", "claim", "glue")}
    loads = {(rdc.data, "load"): few, (rdc.denoise.checkpoints, "load_denoiser"): small, (rdc.models, "build"): small_model}
    loads |= {(rdc.guide, "load_classifier"): guide, (rdc.classify.reference, "reference_network"): reference}
    return {**loads, **quiet}


def run(chapter: str, device: torch.device) -> None:
    """All cells, with the parameters of the toy after the first of them."""
    space: dict[str, Any] = {"__name__": "chapter"}
    left_out = {start for name, start in LEFT_OUT if name == chapter}
    for number, cell in enumerate(code(NOTEBOOKS / f"{chapter}.py")):
        if skipped := {start for start in left_out if cell.startswith(start)}:
            left_out -= skipped
            continue
        exec(compile(cell, f"{chapter}, cell {number}", "exec", optimize=1), space)  # without assertions, which are about numbers
        if number == 0:
            space |= TOY[chapter] | {"device": str(device)}
        plt.close("all")
    assert not left_out, "there are no such cells"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("chapter", TOY)
def test_the_cells_run_on_another_device(chapter: str, elsewhere: Elsewhere) -> None:  # noqa: F811
    block, device = elsewhere
    plt.switch_backend("Agg")
    with contextlib.ExitStack() as stack:
        for (module, name), value in replaced(chapter).items():
            stack.enter_context(mock.patch.object(module, name, value))
        stack.enter_context(matplotlib.rc_context())
        stack.enter_context(mock.patch.object(jaxtyping.config, "jaxtyping_disable", True))  # readers have no checked types
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(block)
        run(chapter, device)
