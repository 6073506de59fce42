"""Test images to make choices on: those of all of Fashion-MNIST that are not among the book's own test images."""

__all__ = ["unseen"]

import torch

from rdc.data.registry import Images, load


def unseen(count: int) -> Images:
    """Return the first test images of ``fashion`` that ``fashion-mini`` does not hold.

    Raises:
        DataError: if the files of ``fashion`` are not there.
        ValueError: if there are fewer.
    """
    test, known = load("fashion"), {x.numpy().tobytes() for x in load("fashion-mini").x}
    index = [i for i, x in enumerate(test.x) if x.numpy().tobytes() not in known][:count]
    if len(index) < count:
        raise ValueError(f"fashion has {len(index)} test images that fashion-mini does not hold, not {count}")
    return test[torch.tensor(index, dtype=torch.int64, device="cpu")]
