"""Certificates: no image within an L2 radius (units of images in [0, 1]) changes the answer."""

from rdc.certify.baselines import Carlini as Carlini
from rdc.certify.baselines import Clipped as Clipped
from rdc.certify.baselines import Cohen as Cohen
from rdc.certify.clopper_pearson import clopper_pearson as clopper_pearson
from rdc.certify.clopper_pearson import radius_from_counts as radius_from_counts
from rdc.certify.lipschitz import empirical_slope as empirical_slope
from rdc.certify.lipschitz import lipschitz_constant as lipschitz_constant
from rdc.certify.lipschitz_certificate import LipschitzCertificate as LipschitzCertificate
from rdc.certify.lipschitz_certificate import lipschitz_certify as lipschitz_certify
from rdc.certify.noised import APNDC as APNDC
from rdc.certify.noised import EPNDC as EPNDC
from rdc.certify.rows import certified_accuracy as certified_accuracy
from rdc.certify.rows import certify_rows as certify_rows
from rdc.certify.smoothing import Certificate as Certificate
from rdc.certify.smoothing import certify as certify
from rdc.certify.smoothing import predict as predict
