"""Fewer evaluations for the same answer: sift and refine, cascades, races."""

from rdc.early_exit.cascade import Cascade as Cascade
from rdc.early_exit.race import Race as Race
from rdc.early_exit.race import Round as Round
from rdc.early_exit.race_rounds import learn_rounds as learn_rounds
from rdc.early_exit.sift import SiftAndRefine as SiftAndRefine
from rdc.early_exit.sift_rules import Leader as Leader
from rdc.early_exit.sift_rules import Paired as Paired
from rdc.early_exit.sift_rules import Threshold as Threshold
