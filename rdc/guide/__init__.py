"""Robust classifier guidance: time-dependent classifiers, guided sampling, and how good and how aligned the results are."""

from rdc.guide.align import alignment as alignment
from rdc.guide.align import alignment_table as alignment_table
from rdc.guide.align import climb as climb
from rdc.guide.align import shift_effect as shift_effect
from rdc.guide.classifier import AtLevel as AtLevel
from rdc.guide.classifier import TimeClassifier as TimeClassifier
from rdc.guide.classifier import load_classifier as load_classifier
from rdc.guide.guides import ClassifierGuide as ClassifierGuide
from rdc.guide.guides import DiffusionGuide as DiffusionGuide
from rdc.guide.guides import PosteriorGuide as PosteriorGuide
from rdc.guide.guides import RatioGuide as RatioGuide
from rdc.guide.metrics import FeatureNetwork as FeatureNetwork
from rdc.guide.metrics import agreement as agreement
from rdc.guide.metrics import bootstrap as bootstrap
from rdc.guide.metrics import frechet_distance as frechet_distance
from rdc.guide.metrics import precision_recall as precision_recall
from rdc.guide.plan import SamplingPlan as SamplingPlan
from rdc.guide.plan import edm_path as edm_path
from rdc.guide.plan import vp_path as vp_path
from rdc.guide.sampling import Samples as Samples
from rdc.guide.sampling import sample as sample
from rdc.guide.threat import Threat as Threat
from rdc.guide.threat import level_table as level_table
from rdc.guide.threat import perturb as perturb
