"""The planted defences of :mod:`rdc.defend.broken`, one model each, around a network of the book."""

import torch
from torch import nn

from rdc.models.parts import Network, reference_network
from rdc.models.registry import model


@model("broken-tiny-logits")
def tiny_logits(data: str, device: torch.device, *, network: Network = "cnn", factor: float = 1e-08) -> nn.Module:
    """Broken on purpose: logits on a tiny scale, so that cross-entropy is rounded away."""
    from rdc.defend.broken import TinyLogits

    return TinyLogits(reference_network(network, data, device), factor=factor)


@model("broken-saturated-softmax")
def saturated_softmax(data: str, device: torch.device, *, network: Network = "cnn", factor: float = 1000.0) -> nn.Module:
    """Broken on purpose: probabilities that are exactly 0 and 1, without a gradient."""
    from rdc.defend.broken import SaturatedSoftmax

    return SaturatedSoftmax(reference_network(network, data, device), factor=factor)


@model("broken-quantised-input")
def quantised_input(data: str, device: torch.device, *, network: Network = "cnn", levels: int = 32) -> nn.Module:
    """Broken on purpose: images of a few grey levels, whose gradient is zero."""
    from rdc.defend.broken import QuantisedInput

    return QuantisedInput(reference_network(network, data, device), levels=levels)


@model("broken-shattered-gradient")
def shattered_gradient(
    data: str, device: torch.device, *, network: Network = "cnn", amplitude: float = 0.004, frequency: float = 1e4, seed: int = 0
) -> nn.Module:
    """Broken on purpose: images with a fine wave, whose gradient points nowhere."""
    from rdc.defend.broken import ShatteredGradient

    return ShatteredGradient(reference_network(network, data, device), amplitude=amplitude, frequency=frequency, seed=seed)


@model("broken-detached-preprocessing")
def detached_preprocessing(data: str, device: torch.device, *, network: Network = "cnn", weight: float = 0.2) -> nn.Module:
    """Broken on purpose: blurred images, detached from autograd."""
    from rdc.defend.broken import DetachedPreprocessing

    return DetachedPreprocessing(reference_network(network, data, device), weight=weight)


@model("broken-random-input")
def random_input(
    data: str,
    device: torch.device,
    *,
    network: Network = "cnn",
    shift: float = 0.05,
    scale: float = 0.05,
    noise_std: float = 0.02,
) -> nn.Module:
    """Broken on purpose: images shifted, resized and noisy at random, by the global generator."""
    from rdc.defend.broken import RandomInput

    return RandomInput(reference_network(network, data, device), shift=shift, scale=scale, noise=noise_std)


@model("broken-reseeded-noise")
def reseeded_noise(
    data: str,
    device: torch.device,
    *,
    network: Network = "cnn",
    shift: float = 0.05,
    scale: float = 0.05,
    noise_std: float = 0.02,
) -> nn.Module:
    """Broken on purpose: the same, after the global generator was restarted at every call."""
    from rdc.defend.broken import ReseededNoise

    return ReseededNoise(reference_network(network, data, device), shift=shift, scale=scale, noise=noise_std)


@model("broken-batch-leak")
def batch_leak(data: str, device: torch.device, *, network: Network = "cnn", strength: float = 0.5) -> nn.Module:
    """Broken on purpose: an answer that depends on the other images of the batch."""
    from rdc.defend.broken import BatchLeak

    return BatchLeak(reference_network(network, data, device), strength=strength)
