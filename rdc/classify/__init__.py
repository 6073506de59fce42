"""Classifiers: ``nn.Module`` s from images in [0, 1] to logits ``(N, K)``."""

from rdc.classify.diffusion import DiffusionClassifier as DiffusionClassifier
from rdc.classify.networks import CNN as CNN
from rdc.classify.networks import cifar10_resnet18 as cifar10_resnet18
from rdc.classify.optimal import NearestNeighbor as NearestNeighbor
from rdc.classify.optimal import OptimalClassifier as OptimalClassifier
from rdc.classify.optimal import ReleasedOptimalClassifier as ReleasedOptimalClassifier
from rdc.defend.likelihood import RDC as RDC
from rdc.defend.likelihood import LikelihoodMaximization as LikelihoodMaximization
from rdc.defend.purify import DiffPure as DiffPure
from rdc.defend.purify import Purify as Purify
