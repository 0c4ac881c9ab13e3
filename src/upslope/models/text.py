"""Classifiers of texts: those of Hugging Face `transformers`, from a folder or of your own.

    def make(num_classes, input_shape):                     # in my_package/nets.py
        network = BertForSequenceClassification(BertConfig(num_labels=num_classes, ...))
        return SequenceClassifier(network)

under the name `my_package.nets:make`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from upslope.errors import ConfigError, ModelError


class SequenceClassifier(nn.Module):
    """A network that takes ids and mask apart, taking them in one tensor.

    Input (n, 2, t) integers, ids and mask; output logits (n, num_classes). network: called with
    `input_ids` and `attention_mask`, (n, t) each; returns logits, or an object that has them.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, num_classes) of texts (n, 2, t).

        x: token ids and their mask.

        Raises:
            ModelError: ids beyond the network's vocabulary (told on the CPU, where strategies are
                tried first).
        """
        ids, mask = x.long().unbind(dim=1)
        try:
            outputs: Any = self.network(input_ids=ids, attention_mask=mask)
        except IndexError as error:
            raise ModelError(
                f"Expected token ids and positions that {type(self.network).__name__} has vectors "
                f"for but got ids up to {int(ids.max())} and {ids.shape[1]} positions. Give the "
                "data set the network's own tokenizer (`data.tokenizer`), or a smaller `length`."
            ) from error
        logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
        return logits


def from_folder(
    num_classes: int,
    input_shape: tuple[int, ...],
    path: Annotated[
        str, Field(description="folder with config.json and, for its weights, model.safetensors")
    ] = "",
    weights: Annotated[
        bool, Field(description="begin with the folder's weights, not with random ones")
    ] = True,
) -> SequenceClassifier:
    """A sequence classifier of Hugging Face transformers, from a local folder; needs [text]."""
    folder = Path(path).expanduser()
    if not path or not (folder / "config.json").is_file():
        raise ConfigError(
            f"Expected `path` to be a folder with a config.json but got {path!r}. Save one with "
            "transformers' save_pretrained; nothing is downloaded."
        )
    if len(input_shape) != 2 or input_shape[0] != 2:
        raise ModelError(
            "Expected inputs of shape (2, t), token ids and mask, for the model `transformers` but "
            f"got {tuple(input_shape)}. Use the data set `text`."
        )
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "Expected the package `transformers` for the model `transformers` but it is not "
            "installed: pip install '.[text]' in the clone."
        ) from error
    auto = transformers.AutoModelForSequenceClassification
    given = {"local_files_only": True, "trust_remote_code": False, "num_labels": num_classes}
    try:
        if weights:
            network = auto.from_pretrained(folder, use_safetensors=True, **given)
        else:
            config = transformers.AutoConfig.from_pretrained(folder, **given)
            network = auto.from_config(config)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"Expected a model of transformers in {folder} but loading it failed: {error}"
        ) from error
    # Such models come in evaluation mode; ours begin as every module does.
    return SequenceClassifier(network.train())
