"""Classifiers of texts: those of Hugging Face `transformers`, from a folder or of your own.

    def make(num_classes, input_shape):                     # in my_package/nets.py
        network = BertForSequenceClassification(BertConfig(num_labels=num_classes, ...))
        return SequenceClassifier(network)

under the name `my_package.nets:make`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from upslope.errors import ModelError


class SequenceClassifier(nn.Module):
    """A network that takes ids and mask apart, taking them in one tensor.

    Input (n, 2, t) integers, ids and mask; output logits (n, num_classes). network: called with
    `input_ids` and `attention_mask`, (n, t) each; returns logits, or an object that has them. Where
    its `config` has a `pad_token_id`, that stands where the mask is 0.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, num_classes) of texts (n, 2, t).

        x: token ids and their mask.

        Raises:
            ModelError: ids beyond the network's vocabulary (told on the CPU, where strategies are
                tried first), or a network that goes by a padding that it does not state.
        """
        ids, mask = x.long().unbind(dim=1)
        # Some networks go by their own id of padding, not by the mask, to find the last token.
        padding = getattr(getattr(self.network, "config", None), "pad_token_id", None)
        if padding is not None:
            ids = ids.where(mask.bool(), padding)
        try:
            outputs: Any = self.network(input_ids=ids, attention_mask=mask)
        except IndexError as error:
            raise ModelError(
                f"Expected token ids and positions that {type(self.network).__name__} has vectors "
                f"for but got ids up to {int(ids.max())} and {ids.shape[1]} positions. Give the "
                "data set the network's own tokenizer (`data.tokenizer`), or a smaller `length`."
            ) from error
        except ValueError as error:
            if padding is not None or "padding token" not in str(error):
                raise
            raise ModelError(
                f"Expected {type(self.network).__name__} to know its padding, by which it finds "
                "the last token of a text, but its config has no `pad_token_id`. Set it in "
                "config.json, to the number of eos_token_id where nothing else is meant."
            ) from error
        logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
        return logits
