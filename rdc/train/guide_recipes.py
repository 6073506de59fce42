"""The recipes of the shipped classifiers: ``python tools/train_guides.py --which robust`` repeats one."""

__all__ = ["GUIDES"]

from dataclasses import replace

from rdc.denoise.unet import UNetConfig
from rdc.guide.classifier import ClassifierConfig
from rdc.guide.threat import Threat
from rdc.train.guides import GuideConfig

FASHION_ENCODER = UNetConfig(
    resolution=28,
    channels=1,
    label_dim=0,
    model_channels=32,
    channel_mult=(1, 2),
    num_blocks=2,
    attn_resolutions=(7,),
    patch=2,
)
DIGITS_ENCODER = UNetConfig(
    resolution=8, channels=1, label_dim=0, model_channels=32, channel_mult=(1, 2), num_blocks=1, attn_resolutions=()
)
FASHION = GuideConfig(
    ClassifierConfig(FASHION_ENCODER, 10, sigma_data=0.7, data="fashion"), steps=3_000, lr=2e-3, warmup=200, precision="bf16"
)
DIGITS = GuideConfig(
    ClassifierConfig(DIGITS_ENCODER, 10, sigma_data=0.75, data="digits"), steps=1_000, batch=64, lr=2e-3, warmup=100, ema=0.99
)

#: By data set, then ``vanilla`` or ``robust``: as many steps for both. The attack is the paper's, L2 0.5 with 7 steps, as its
#: code reads it.
GUIDES = {
    "fashion-mini": {"vanilla": FASHION, "robust": replace(FASHION, threat=Threat())},
    "digits": {"vanilla": DIGITS, "robust": replace(DIGITS, threat=Threat())},
}
