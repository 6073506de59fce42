"""Attacks ``attack(model, x, y, norm=..., eps=..., seed=...) -> x_adv``; they know no defence and take any classifier."""

from rdc.attack.autoattack import autoattack as autoattack
from rdc.attack.pgd import pgd as pgd
