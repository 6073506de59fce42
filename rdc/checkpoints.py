"""The former name of :mod:`rdc.denoise.checkpoints`, whose denoisers are now any that :mod:`rdc.denoise.published` reads."""

from rdc.denoise.checkpoints import CheckpointError as CheckpointError
from rdc.denoise.checkpoints import read_checkpoint as read_checkpoint
from rdc.denoise.checkpoints import write_checkpoint as write_checkpoint
from rdc.denoise.published import load_denoiser as load_denoiser
