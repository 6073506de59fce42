"""Measurements of a model rather than of its accuracy: how random, how large, how smooth its gradients are, and how far a
purification contracts. Each takes any model and is a function of its seed; none depends on the rest of the batch."""

from rdc.analyse.compression import compression_rate as compression_rate
from rdc.analyse.compression import jacobian_rms as jacobian_rms
from rdc.analyse.compression import top_singular_value as top_singular_value
from rdc.analyse.gradients import SignalNoise as SignalNoise
from rdc.analyse.gradients import eot_cosine as eot_cosine
from rdc.analyse.gradients import gradient_cosine as gradient_cosine
from rdc.analyse.gradients import linearised_distance as linearised_distance
from rdc.analyse.gradients import repeated_gradients as repeated_gradients
from rdc.analyse.gradients import signal_to_noise as signal_to_noise
from rdc.analyse.noise import LossNoise as LossNoise
from rdc.analyse.noise import loss_noise as loss_noise
from rdc.analyse.rival import margin_to as margin_to
from rdc.analyse.rival import runner_up as runner_up
from rdc.analyse.smoothness import ascent_path as ascent_path
from rdc.analyse.smoothness import gradient_lipschitz as gradient_lipschitz
from rdc.analyse.smoothness import gradients_along as gradients_along
from rdc.analyse.smoothness import lipschitz as lipschitz
from rdc.analyse.smoothness import path_cosine as path_cosine
from rdc.analyse.stand_in import pulled_back as pulled_back
from rdc.analyse.stand_in import transmission as transmission
