"""Peak resident memory of one gradient: ``python -m benchmarks.memory LEVELS IMAGES CHUNK CHECKPOINT MODEL``, in a fresh process.

CHUNK is a number or ``auto``. MODEL is ``dc``, ``epndc`` or ``apndc``.

Prints ``[peak, peak before the gradient]`` in MiB. The process's own high-water mark is read where the kernel shows it:
``ru_maxrss`` may be that of the process which started it.
"""

import json
import resource
import sys
from pathlib import Path

from rdc.attack.losses import margin
from rdc.autograd import value_and_gradient
from rdc.certify import APNDC, EPNDC
from rdc.classify import DiffusionClassifier
from rdc.data import load
from rdc.denoise.checkpoints import load_denoiser
from rdc.schedule import levels


def peak() -> float:
    """MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Take one gradient of the margin and print the peaks."""
    count, images, chunk = int(sys.argv[1]), int(sys.argv[2]), None if sys.argv[3] == "auto" else int(sys.argv[3])
    test = load("fashion-mini", "test")
    denoiser = load_denoiser(sys.argv[4])
    model = {
        "dc": lambda: DiffusionClassifier(denoiser, levels("elbo", count), chunk=chunk),
        "epndc": lambda: EPNDC(denoiser, 0.25, count=count, chunk=chunk),
        "apndc": lambda: APNDC(denoiser, 0.25, count=count, chunk=chunk),
    }[sys.argv[5]]()
    before = peak()
    value_and_gradient(lambda p: margin(model(p), test.y[:images]), test.x[:images])
    print(json.dumps([peak(), before]))


if __name__ == "__main__":
    main()
