"""What the campaigns on the papers' own data share: the published denoisers, and the images that are attacked."""

from typing import Any

from rdc.runs.cell import Row

#: Checkpoints of Karras et al. (2022), converted by ``rdc convert``, in the folder of the run: DDPM++ with and without labels.
CONDITIONAL = "edm-cifar10-32x32-cond-vp.safetensors"
UNCONDITIONAL = "edm-cifar10-32x32-uncond-vp.safetensors"
#: The denoiser and the classifiers of ImageNet at 128 x 128, and the images that others are compared with.
ADM, REFERENCE = "adm-imagenet-128.safetensors", "VIRTUAL_imagenet128_labeled.npz"
VANILLA, ROBUST = "128x128_classifier.pt", "128x128_robust_classifier.pt"
#: Files of the campaigns, and where each comes from; those that are not named are trained by the released code on guidance.
ORIGINS = {
    CONDITIONAL: "'rdc convert' makes it from the .pkl of that name, published with Karras et al. (2022)",
    UNCONDITIONAL: "'rdc convert' makes it from the .pkl of that name, published with Karras et al. (2022)",
    ADM: "'rdc convert' makes it from 128x128_diffusion.pt of Dhariwal and Nichol (2021)",
    VANILLA: "published with Dhariwal and Nichol (2021)",
    ROBUST: "the classifier that Kawar et al. (2022) published, under this name",
    REFERENCE: "the reference batch of Dhariwal and Nichol (2021)",
    "inception.py": "yours, with a function network() that returns an nn.Module: images in [0, 1] to features",
}
TRAINED = "trained by the released code of Kawar et al. (2022)"
IMAGES = 512  # the first ones of the test split


Settings = dict[str, Any]


def row(
    table: str, reading: str, model: str, attack: str | None, given: Settings, options: Settings, block: int, **more: Any
) -> Row:
    """Return a row on CIFAR-10: the table that it stands for, and whether it is read from the paper or from the code."""
    about = {"table": table, "reading": reading, "model": model, "attack": attack, **given, **options}
    return Row(model, options, attack, given, "cifar10", IMAGES, block=block, about=about, **more)
