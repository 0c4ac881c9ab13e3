"""A small text classifier: the mean of word vectors, a hidden layer, a head.

Bags of word vectors are a strong baseline where labels are few: A. Joulin et al., Bag of Tricks for
Efficient Text Classification, EACL 2017.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from upslope.errors import ModelError
from upslope.models.small import Dropout

_DEVIATION = 0.1
"""Of the word vectors at the start. With 1, as torch has it, 200 labelled sentences are learnt by
heart before a vector has moved: 0.57 instead of 0.63 of SST-2 right."""


class MeanVector(nn.Module):
    """The mean of the vectors of a text's words; zero for a text without words.

    Input (n, 2, t) integers, word numbers and mask; output (n, width). Numbers are taken modulo
    `rows`: some words share a vector.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(rows, width)
        nn.init.normal_(self.vectors.weight, std=_DEVIATION)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean word vectors (n, width) of texts (n, 2, t)."""
        numbers, mask = x.long().unbind(dim=1)
        weights = mask.to(self.vectors.weight.dtype)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
        vectors = self.vectors(numbers % self.vectors.num_embeddings)
        mean: Tensor = (vectors * weights.unsqueeze(-1)).sum(dim=1)
        return mean


class BagOfWords(nn.Module):
    """The mean of word vectors, a hidden layer with ReLU, a head.

    Input (n, 2, t) integers, word numbers and mask; output (n, num_classes).
    """

    stages = ("words", "hidden")

    def __init__(
        self, num_classes: int, rows: int, width: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.words = MeanVector(rows, width)
        self.hidden = nn.Sequential(nn.Linear(width, hidden), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, num_classes) for (n, 2, t)."""
        logits: Tensor = self.head(self.dropout(self.hidden(self.words(x))))
        return logits


def bag_of_words(
    num_classes: int,
    input_shape: tuple[int, ...],
    rows: Annotated[
        int, Field(ge=2, description="word vectors; words beyond share one by their hash")
    ] = 2**14,
    width: Annotated[int, Field(ge=1, description="numbers per word vector")] = 32,
    hidden: Annotated[int, Field(ge=1, description="units of the hidden layer")] = 64,
    dropout: Dropout = 0.0,
) -> BagOfWords:
    """Mean of word vectors and one hidden layer, for the data set `text`, on a CPU."""
    if len(input_shape) != 2 or input_shape[0] != 2:
        raise ModelError(
            "Expected inputs of shape (2, t), token ids and mask, for the model `bag-of-words` but "
            f"got {tuple(input_shape)}. Use the data set `text`."
        )
    return BagOfWords(num_classes, rows, width, hidden, dropout)
