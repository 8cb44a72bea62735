"""The 8x8 digits that come with scikit-learn: real images, no file needed."""

from __future__ import annotations

import numpy as np
import torch

from gracile.train import Splits
from gracile.zoo.data.images import Images, split, splits

_TEST, _VALIDATION = 0.25, 0.2  # of all images; of what is left


def digits(seed: int = 0) -> Splits:
    """1797 handwritten digits of 8x8 pixels in 10 classes: 1078 to train, 269 to validate, 450 to test.

    The three parts are stratified by class; the test part is the same for every ``seed``, which
    moves only the border between training and validation. Source: E. Alpaydin and C. Kaynak,
    Optical Recognition of Handwritten Digits (UCI, 1998), as bundled with scikit-learn.

    >>> image, target = digits().train[0]
    >>> image.shape, target.dtype
    (torch.Size([1, 8, 8]), torch.int64)
    """
    from sklearn.datasets import load_digits  # here, since it alone takes most of a second to import

    raw = load_digits()
    learning, test = split(raw.target, _TEST, seed=0)
    pixels = raw.images.astype(np.uint8)[:, None]
    images = Images(
        torch.from_numpy(pixels),
        torch.from_numpy(raw.target.astype(np.int64)),
        classes=10,
        mean=(0.3055,),
        std=(0.3759,),
        top=16,
    )
    return splits(images.take(learning), images.take(test), _VALIDATION, seed)
