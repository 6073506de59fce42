"""Shared fixtures, and settings that make the property tests the same on every run."""

import tempfile

import pytest
import torch
import typechecker  # noqa: F401  (it takes its place before the package is imported)
from hypothesis import configuration, settings

from rdc.data import DataError, Images, load
from rdc.denoise.edm import EDM

configuration.set_hypothesis_home_dir(tempfile.gettempdir())  # nothing is stored beside the sources
settings.register_profile("rdc", deadline=None, derandomize=True, database=None, max_examples=25)
settings.load_profile("rdc")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the tests compute that can compute elsewhere."""
    parser.addoption("--device", default="cpu", help="device of the tests that can run on another: cpu (default) or cuda")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device that was asked for."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def few_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four fresh verdicts about an image of a randomised model in place of twenty, where a test only asks whether a row runs."""
    monkeypatch.setattr("rdc.evaluate.robustness.DRAWS", 4)


@pytest.fixture(scope="session")
def digits() -> Images:
    """The test split of ``digits``."""
    return load("digits", "test")


@pytest.fixture(scope="session")
def fashion_train() -> Images:
    """The train split of ``fashion-mini``, 10 000 images."""
    return load("fashion-mini", "train")


@pytest.fixture(scope="session")
def fashion_test() -> Images:
    """The test split of ``fashion-mini``, 1 000 images."""
    return load("fashion-mini", "test")


@pytest.fixture(scope="session")
def fashion() -> tuple[Images, Images]:
    """All of Fashion-MNIST, if this machine has it."""
    try:
        return load("fashion", "train"), load("fashion", "test")
    except DataError as error:
        pytest.skip(f"the full data set is not on this machine: {error}")


@pytest.fixture(scope="session")
def tiny_edm() -> EDM:
    """A small network with random, not vanishing, weights."""
    from helpers import tiny_network

    return tiny_network()
