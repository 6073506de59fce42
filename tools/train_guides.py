"""Train the time-dependent classifiers that guide: runs/guide/<recipe>-<which>.safetensors, and their training curves.

    python tools/train_guides.py --which vanilla
    python tools/train_guides.py --which robust [--radius paper --norm Linf --eps 0.0157 --no-stop]

Killed at any moment, the same command continues where it stopped. The options of the attack are part of the name of the file;
with other steps, seed or data give another ``--out``.

Reference: Enhancing Diffusion-Based Image Synthesis with Robust Classifier Guidance (Kawar et al., 2022), Eq. 5
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from rdc.guide.threat import RADII, STEPS, Threat
from rdc.train.guide_recipes import GUIDES
from rdc.train.guides import GuideConfig, train_guide

RUNS = Path(__file__).parents[1] / "runs" / "guide"


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--which", choices=("vanilla", "robust"), required=True)
    parser.add_argument("--recipe", choices=tuple(GUIDES), default="fashion-mini")
    parser.add_argument("--data", help="data set to train on; by default that of the recipe")
    parser.add_argument("--out", type=Path, help="file to write; by default in runs/guide/")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-seconds", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    default = Threat()
    parser.add_argument("--norm", choices=("L2", "Linf"), default=default.norm)
    parser.add_argument("--eps", type=float, default=default.eps)
    parser.add_argument("--attack-steps", type=int, default=default.steps)
    parser.add_argument("--radius", choices=tuple(RADII), default=default.radius)
    parser.add_argument("--step-rule", choices=tuple(STEPS), default=default.step)
    parser.add_argument("--no-stop", action="store_true", help="attack on where the classifier is fooled already")
    return parser


def configured(args: argparse.Namespace) -> GuideConfig:
    """The recipe with the options."""
    config = GUIDES[args.recipe][args.which]
    if args.which == "robust":
        threat = Threat(args.norm, args.eps, args.attack_steps, args.radius, args.step_rule, not args.no_stop)
        config = replace(config, threat=threat)
    if args.data:
        config = replace(config, classifier=replace(config.classifier, data=args.data))
    return replace(config, seed=args.seed, steps=config.steps if args.steps is None else args.steps)


def suffix(threat: Threat | None) -> str:
    """What the name of the file says of a threat model; nothing of the recipe's own."""
    if threat in (None, Threat()):
        return ""
    name = f"-{threat.radius}-{threat.norm}-{threat.eps:g}-{threat.steps}-{threat.step}"
    return name if threat.stop else f"{name}-full"


def main(arguments: list[str] | None = None) -> None:
    args = options().parse_args(arguments)
    torch.set_num_threads(args.threads)
    try:
        config = configured(args)
        out = args.out or RUNS / f"{args.recipe}-{args.which}{suffix(config.threat)}.safetensors"
        path = train_guide(config, out, args.device, save_seconds=args.save_seconds)
    except (ValueError, OSError) as error:
        sys.exit(f"train_guides: {error}")
    except KeyboardInterrupt:
        sys.exit("train_guides: interrupted; the same command continues")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
