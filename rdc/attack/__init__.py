"""Attacks ``attack(model, x, y, norm=..., eps=..., seed=...) -> x_adv``; they know no defence and take any classifier."""

from rdc.attack.autoattack import autoattack as autoattack
from rdc.attack.blackbox import square as square
from rdc.attack.blackbox import transfer as transfer
from rdc.attack.blackbox import uniform_noise as uniform_noise
from rdc.attack.feature import feature as feature
from rdc.attack.lagrange import lagrange as lagrange
from rdc.attack.pgd import pgd as pgd
from rdc.attack.stadv import flow_field as flow_field
from rdc.attack.stadv import stadv as stadv
from rdc.attack.stadv import warp as warp
