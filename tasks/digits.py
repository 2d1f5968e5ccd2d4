"""Digits of 8 x 8 pixels (Alpaydin and Kaynak, 1998, https://doi.org/10.24432/C50P49), as scikit-learn ships them: a
classification of real images that trains in seconds. Tokens are the gray values 0 to 16, row by row.

    0 0  5 13  9 1 0 0 | 0 0 13 15 10 15 5 0 | ...   ->   0
"""

import torch

from tasks.labelled import Examples, Labelled


class Digits(Labelled):
    """1,797 examples; train, validation, test: how many of them."""

    classes = 10
    look = "image"

    def load(self) -> dict[str, Examples]:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ValueError(
                "the digits are scikit-learn's, which is not installed: pip install scikit-learn"
            ) from error
        data = load_digits()
        return {"train": Examples(torch.from_numpy(data.data).to(torch.uint8), torch.from_numpy(data.target).long())}
