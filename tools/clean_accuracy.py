"""Clean accuracy of the trained diffusion classifier on all 1 000 test images of fashion-mini: results/clean_accuracy.json.

    python tools/clean_accuracy.py [--levels 32] [--draws 2] [--sigma-min 0.1]

The range of the levels was chosen on 300 test images of Fashion-MNIST that are not in fashion-mini, by clean accuracy.
"""

import argparse
import time
from pathlib import Path

from rdc.classify import DiffusionClassifier
from rdc.data import load
from rdc.denoise import fast_dtype
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import accuracy
from rdc.runs.record import write_record
from rdc.schedule import levels

RESULTS = Path(__file__).parents[1] / "results"


def main() -> None:
    """Count right answers and the cost of an image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", type=int, default=32, help="number of noise levels (ELBO weight)")
    parser.add_argument("--draws", type=int, default=2, help="noise draws per level")
    parser.add_argument("--sigma-min", type=float, default=0.1, help="lowest noise level, model units")
    args = parser.parse_args()
    test, denoiser, start = load("fashion-mini"), load_denoiser("fashion-mini", dtype=fast_dtype()), time.perf_counter()
    chosen = levels("elbo", args.levels, sigma_min=args.sigma_min)
    model = DiffusionClassifier(denoiser, chosen, seed=0, draws=args.draws)
    found = accuracy(model, test.x, test.y, batch=50, quiet=False)
    seconds = time.perf_counter() - start
    results = {"accuracy": found, "evaluations": model.evaluations, "seconds_an_image": round(seconds / len(test), 4)}
    config = {"kind": "elbo", "sigma_max": 20.0, "seed": 0, "precision": str(fast_dtype()), **vars(args)}
    write_record(RESULTS / "clean_accuracy.json", config, results, seconds)
    print(found)


if __name__ == "__main__":
    main()
