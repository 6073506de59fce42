"""Classifiers: ``nn.Module`` s from images in [0, 1] to logits ``(N, K)``."""

from rdc.classify.diffusion import DiffusionClassifier as DiffusionClassifier
from rdc.classify.likelihood import RDC as RDC
from rdc.classify.likelihood import LikelihoodMaximization as LikelihoodMaximization
from rdc.classify.networks import CNN as CNN
from rdc.classify.networks import cifar10_resnet18 as cifar10_resnet18
from rdc.classify.optimal import NearestNeighbor as NearestNeighbor
from rdc.classify.optimal import OptimalClassifier as OptimalClassifier
from rdc.classify.optimal import ReleasedOptimalClassifier as ReleasedOptimalClassifier
from rdc.classify.purify import DiffPure as DiffPure
from rdc.classify.purify import Purify as Purify
