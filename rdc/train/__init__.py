"""Training: the loop that survives a kill, denoisers, heads, classifiers, and their recipes."""

from rdc.train.denoiser import TrainConfig as TrainConfig
from rdc.train.denoiser import train_denoiser as train_denoiser
