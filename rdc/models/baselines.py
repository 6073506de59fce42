"""Models to compare a defence with: networks trained in other ways, randomised ones, and those of RobustBench."""

from typing import Annotated, Literal

import torch
from torch import nn

from rdc.models.parts import DenoiserName, Network, find_denoiser, reference_network
from rdc.models.registry import model

Fresh = Literal["fresh", "fixed"]


@model("trades-linf")
def trades_linf(data: str, device: torch.device) -> nn.Module:
    """The CNN, trained by TRADES (Zhang et al., 2019) in an Linf ball."""
    return shipped("trades-linf", data, device)


@model("trades-l2")
def trades_l2(data: str, device: torch.device) -> nn.Module:
    """The CNN, trained by TRADES in an L2 ball."""
    return shipped("trades-l2", data, device)


@model("mart-linf")
def mart_linf(data: str, device: torch.device) -> nn.Module:
    """The CNN, trained by MART (Wang et al., 2020) in an Linf ball."""
    return shipped("mart-linf", data, device)


@model("mart-l2")
def mart_l2(data: str, device: torch.device) -> nn.Module:
    """The CNN, trained by MART in an L2 ball."""
    return shipped("mart-l2", data, device)


@model("at-linf-generated")
def at_linf_generated(data: str, device: torch.device) -> nn.Module:
    """The CNN, adversarially trained in an Linf ball, half of each batch sampled from our own denoiser (Gowal et al., 2021)."""
    return shipped("at-linf-generated", data, device)


@model("at-l2-generated")
def at_l2_generated(data: str, device: torch.device) -> nn.Module:
    """The same in an L2 ball."""
    return shipped("at-l2-generated", data, device)


@model("wrn-linf")
def wrn_linf(data: str, device: torch.device) -> nn.Module:
    """A wide residual network (Zagoruyko and Komodakis, 2016), adversarially trained in an Linf ball, briefly."""
    return shipped("wrn-linf", data, device)


@model("jem")
def jem(data: str, device: torch.device) -> nn.Module:
    """The CNN as a joint energy-based model (Grathwohl et al., 2020)."""
    return shipped("jem", data, device)


@model("random-noise")
def random_noise(
    data: str,
    device: torch.device,
    *,
    network: Network = "cnn",
    sigma: float = 0.1,
    noise: Fresh = "fresh",
    seed: int = 0,
) -> nn.Module:
    """Gaussian noise sigma (image units) in front of a network of the book."""
    from rdc.defend.randomised import RandomNoise

    return RandomNoise(reference_network(network, data, device), sigma, noise, seed)


@model("random-resize")
def random_resize(
    data: str,
    device: torch.device,
    *,
    network: Network = "cnn",
    least: float = 0.85,
    noise: Fresh = "fresh",
    seed: int = 0,
) -> nn.Module:
    """A random size and place in front of a network of the book (after Xie et al., 2018).

    least: the least size, a share of the image's.
    """
    from rdc.defend.randomised import RandomResize

    return RandomResize(reference_network(network, data, device), least, noise, seed)


@model("denoised-smoothing")
def denoised_smoothing(
    data: str,
    device: torch.device,
    *,
    sigma: float = 0.25,
    draws: int = 8,
    network: Network = "cnn",
    denoiser: DenoiserName = "single-head",
    noise: Fresh = "fixed",
    seed: int = 0,
) -> nn.Module:
    """The mean of carlini over some noisy copies of a clean image (denoised smoothing, Salman et al., 2020), without a proof.

    For certificates take the base classifier carlini.
    """
    from rdc.certify.baselines import Carlini
    from rdc.defend.randomised import MeanOverNoise

    base = Carlini(find_denoiser(denoiser, data, device), reference_network(network, data, device), sigma)
    return MeanOverNoise(base, sigma, draws, noise, seed)


@model("robustbench")
def robustbench(
    data: str,
    device: torch.device,
    *,
    network: Annotated[str, "a name on robustbench.github.io"] = "Carmon2019Unlabeled",
    threat: Literal["Linf", "L2", "corruptions"] = "Linf",
    folder: Annotated[str, "a folder for the weights"] = "runs/robustbench",
) -> nn.Module:
    """A network of RobustBench (Croce et al., 2021), which a reader installs; its weights are downloaded by that package.

    They take images in [0, 1] and normalise them by themselves, as the models here do.
    """
    try:
        from robustbench.utils import load_model
    except ImportError as error:
        raise ValueError("RobustBench is not installed; run 'pip install robustbench'") from error
    name = {"cifar10-20": "cifar10"}.get(data, data)
    if name not in ("cifar10", "cifar100"):
        raise ValueError(f"RobustBench has no network for {data}, only for cifar10 and cifar100")
    return load_model(model_name=network, model_dir=folder, dataset=name, threat_model=threat).to(device).requires_grad_(False)


def shipped(kind: str, data: str, device: torch.device) -> nn.Module:
    """Return a shipped network.

    Raises:
        ValueError: if there is none for the data set.
    """
    from rdc.classify.baselines import baseline_network

    return baseline_network(kind, data, device)
