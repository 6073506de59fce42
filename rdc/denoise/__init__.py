"""Denoisers ``D(z_sigma, sigma, y) = E[z | z_sigma, y]``: the one noun that everything else is a function of."""

from rdc.denoise.base import Denoiser as Denoiser
from rdc.denoise.base import compiled as compiled
from rdc.denoise.base import fast_dtype as fast_dtype
from rdc.denoise.base import from_model as from_model
from rdc.denoise.base import to_model as to_model
from rdc.denoise.edm import EDM as EDM
from rdc.denoise.edm import EDMConfig as EDMConfig
from rdc.denoise.multihead import MultiHead as MultiHead
from rdc.denoise.optimal import OptimalDenoiser as OptimalDenoiser
from rdc.denoise.unet import UNet as UNet
from rdc.denoise.unet import UNetConfig as UNetConfig
