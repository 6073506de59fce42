"""The former name of :mod:`rdc.schedule`."""

from rdc.schedule import KINDS as KINDS
from rdc.schedule import Levels as Levels
from rdc.schedule import alpha_to_sigma as alpha_to_sigma
from rdc.schedule import chain_levels as chain_levels
from rdc.schedule import levels as levels
from rdc.schedule import sigma_to_alpha as sigma_to_alpha
from rdc.schedule import vp_alphas as vp_alphas
from rdc.schedule import vp_weights as vp_weights
