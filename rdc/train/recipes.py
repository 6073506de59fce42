"""The recipes of the shipped checkpoints: ``rdc train denoiser --recipe fashion-mini`` repeats one."""

__all__ = ["MULTIHEAD", "RECIPES", "SMALLER"]

from dataclasses import replace

from rdc.denoise.edm import EDMConfig
from rdc.denoise.unet import UNetConfig
from rdc.train import TrainConfig
from rdc.train.heads import DistilConfig

FASHION_UNET = UNetConfig(
    resolution=28,
    channels=1,
    label_dim=10,
    model_channels=32,
    channel_mult=(1, 2),
    num_blocks=1,
    attn_resolutions=(7,),
    patch=2,
)
CIFAR_UNET = UNetConfig(
    resolution=32,
    channels=3,
    label_dim=10,
    model_channels=96,
    channel_mult=(2, 2),
    num_blocks=2,
    attn_resolutions=(8,),
    patch=2,
)
CIFAR_SMALL = replace(CIFAR_UNET, num_blocks=1, inner=(48, 64))
DIGITS_UNET = UNetConfig(
    resolution=8, channels=1, label_dim=10, model_channels=32, channel_mult=(1, 2), num_blocks=1, attn_resolutions=()
)

RECIPES = {
    "fashion-mini": TrainConfig(
        EDMConfig(FASHION_UNET, sigma_data=0.7, data="fashion"),
        steps=11_500,
        batch=128,
        lr=1.5e-3,
        warmup=300,
        p_mean=-0.2,
        p_std=1.4,
        precision="bf16",
    ),
    "digits": TrainConfig(
        EDMConfig(DIGITS_UNET, sigma_data=0.75, data="digits"), steps=4_000, batch=64, lr=1e-3, warmup=200, p_mean=-0.2, p_std=1.4
    ),
    "cifar10-medium": TrainConfig(
        EDMConfig(CIFAR_UNET, data="cifar10"),
        steps=10_000,
        batch=1024,
        lr=1.5e-3,
        warmup=200,
        p_mean=-0.6,
        p_std=1.3,
        precision="bf16",
        flip=True,
    ),
}

#: What the classes add to the unconditional answer: coarse (patch 4), one output for each of the ten classes.
FASHION_BRANCH = UNetConfig(
    resolution=28,
    channels=1,
    label_dim=0,
    model_channels=64,
    channel_mult=(1,),
    num_blocks=2,
    attn_resolutions=(),
    patch=4,
    heads=10,
)

#: Multi-head networks: ``rdc train multihead --recipe fashion-mini``; cifar10-small needs ``--teacher FILE`` and a GPU.
MULTIHEAD = {
    "fashion-mini": DistilConfig(
        TrainConfig(
            EDMConfig(FASHION_UNET, sigma_data=0.7, data="fashion", branch=FASHION_BRANCH),
            steps=6_500,
            batch=64,
            lr=2e-3,
            warmup=200,
            p_mean=0.0,
            p_std=1.2,
            precision="bf16",
        ),
        teacher="fashion-mini",
        gamma=0.05,
    ),
    "cifar10-small": DistilConfig(
        TrainConfig(
            EDMConfig(replace(CIFAR_SMALL, label_dim=0, heads=11), data="cifar10"),
            steps=4_000,
            batch=256,
            lr=5e-4,
            warmup=200,
            ema=0.998,
            p_mean=-0.14,
            p_std=0.72,
            label_dropout=0.15,
            precision="bf16",
            flip=True,
        ),
        objective="pairs",
        subset=3,
        gamma=50.0,
        start="cifar10-small",
    ),
}

#: Smaller denoisers, cut out of a larger one: ``rdc train denoiser --recipe cifar10-small --teacher FILE``.
SMALLER = {
    "cifar10-small": DistilConfig(
        TrainConfig(
            EDMConfig(CIFAR_SMALL, data="cifar10"),
            steps=3_000,
            batch=16,
            lr=4e-4,
            warmup=30,
            ema=0.99,
            p_mean=-0.14,
            p_std=0.72,
            label_dropout=0.15,
            flip=True,
        ),
        objective="pairs",
        subset=2,
        gamma=5.0,
    ),
}
