"""Rows of the embedding and the output head for new pieces.

A new piece's row is the mean of the rows of the old pieces that stood for its bytes (as BELLE's and Chinese-LLaMA's
followers do; Hewitt 2021, "Initializing New Word Embeddings", for the mean over all rows): the model then reads a new piece
as a blur of what it read before, and predicts it about where it predicted the old ones. A new row of the head bias is
their mean too. Knows no files.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.model.vocabulary.extension import Extension


def grow_rows(model: PreTrainedModel, extension: Extension) -> None:
    """Give the model a row for every new piece, tied or not, and set config.vocab_size. Rows that the matrix already had to
    spare (some models are padded) are used first; the number of rows never falls."""
    old_embedding = _weight(model.get_input_embeddings(), model)
    old_rows = old_embedding.shape[0]
    if extension.first_id > old_rows:
        raise ModelError(
            f"the tokenizer has ids up to {extension.first_id - 1}, the model only {old_rows} embeddings",
            hint="tokenizer and weights do not belong together",
        )
    model.resize_token_embeddings(max(extension.size, old_rows), mean_resizing=False)
    with torch.no_grad():
        for matrix in matrices(model):
            means = _means(matrix, extension)
            if not bool(torch.isfinite(means).all()):
                raise ModelError(
                    "the embeddings hold numbers that are not finite, so new rows have no mean",
                    hint="the base model's weights are damaged: fetch them again",
                )
            matrix[extension.first_id : extension.size] = means


def matrices(model: PreTrainedModel) -> list[torch.Tensor]:
    """Tensors with one row per id: the embedding, the head where it is another matrix, the head's bias where there is one."""
    embedding = _weight(model.get_input_embeddings(), model)
    found = [embedding]
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        found += [tensor for tensor in (head.weight, head.bias) if tensor is not None and tensor is not embedding]
    return found


def _weight(module: nn.Module, model: PreTrainedModel) -> torch.Tensor:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise ModelError(f"{type(model).__name__} has no embedding matrix that could grow")
    return weight


def _means(matrix: torch.Tensor, extension: Extension) -> torch.Tensor:
    """(new pieces, ...) means over old rows, summed in fp32."""
    lengths = np.array([len(old) for old in extension.old_pieces], np.int64)
    flat = np.array([index for old in extension.old_pieces for index in old], np.int64)
    owner = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(matrix.device)
    old = matrix[torch.from_numpy(flat).to(matrix.device)].float()
    sums = torch.zeros((len(lengths), *matrix.shape[1:]), device=matrix.device).index_add_(0, owner, old)
    counts = torch.from_numpy(lengths).to(matrix.device).view(-1, *[1] * (matrix.ndim - 1))
    return (sums / counts).to(matrix.dtype)
