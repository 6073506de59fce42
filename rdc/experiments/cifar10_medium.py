"""Does RDC with a larger network keep more images of CIFAR-10, once the gradient sees its likelihood maximisation?

The rows of experiment cifar10 with cifar10-medium, the teacher of the small network: 13 million parameters. Its weights do not
come with the book: the runs need a file cifar10-medium.safetensors in the folder where they start, which ``rdc train denoiser
--recipe cifar10-medium --device cuda`` makes. The record has the hash of ours.
"""

from rdc.experiments.cifar10 import MEDIUM, RANGE, SIXTEEN, SMOOTHED, attacked, clean

ROWS = (
    *(attacked(MEDIUM, g, n=256, priority=-3) for g in (None, "bpda", "exact")),
    attacked(MEDIUM, SMOOTHED, n=256, priority=-2),
    *(clean(MEDIUM, levels, 1000, 32, -1) for levels in (RANGE, SIXTEEN)),
)
