"""Training some rows of embeddings and head and no others, without a gradient or a moment for all of a vocabulary.

The rows are a parameter of their own, float32; the matrix they belong to is frozen and holds them too, in its own type,
as of the last time that it was asked for. So it may be read as any matrix, and its checkpoint is that of a plain layer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from learner.model.family import VisionLanguageModel
from shared.errors import ConfigError

ROWS = ".trained_rows"
"""The end of such a parameter's name."""


class _WithTrainedRows(nn.Module):
    """`trained_rows` [n, dim] stand for the rows `row_ids` [n] of `weight` [vocabulary, dim]."""

    weight: Tensor
    trained_rows: nn.Parameter
    row_ids: Tensor

    def share(self, weight: Tensor, rows: nn.Parameter, row_ids: Tensor) -> None:
        """Take all three over; tied layers have the same ones."""
        self.weight, self.trained_rows = weight, rows
        self.register_buffer("row_ids", row_ids, persistent=False)

    @torch.no_grad()
    def current_weight(self) -> Tensor:
        """The matrix with its rows as they are now."""
        self.weight.data[self.row_ids] = self.trained_rows.to(self.weight.dtype)
        return self.weight

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.current_weight()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[prefix + ROWS.removeprefix(".")]


class RowsEmbedding(_WithTrainedRows, nn.Embedding):
    """An embedding of which only some rows are trained; it gives float32, whatever its matrix is held in."""

    places: Tensor
    """[vocabulary]: which of the rows an id is, or -1"""

    def share(self, weight: Tensor, rows: nn.Parameter, row_ids: Tensor) -> None:
        super().share(weight, rows, row_ids)
        places = torch.full((len(weight),), -1, device=row_ids.device)
        places[row_ids] = torch.arange(len(row_ids), device=row_ids.device)
        self.register_buffer("places", places, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        places = self.places[input]
        trained = embedding(places.clamp(min=0), self.trained_rows)
        return torch.where((places >= 0)[..., None], trained, super().forward(input).float())


class RowsLinear(_WithTrainedRows, nn.Linear):
    """A head of which only some rows are trained."""

    def forward(self, input: Tensor) -> Tensor:
        logits = super().forward(input)
        return logits.index_copy(-1, self.row_ids, linear(input, self.trained_rows).to(logits.dtype))


def train_rows(model: VisionLanguageModel, row_ids: Sequence[int]) -> None:
    """Train these rows of embeddings and head, and no others of them; a head that is tied stays tied."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    ids = torch.tensor(row_ids, device=embeddings.weight.device)
    made: dict[int, nn.Parameter] = {}
    for layer in (embeddings, head):
        layer.weight.requires_grad_(False)
        rows = made.setdefault(id(layer.weight), nn.Parameter(layer.weight.data[ids].float()))
        with torch.device("meta"):  # it gets the matrix that there is
            new: RowsEmbedding | RowsLinear = (
                RowsEmbedding(embeddings.num_embeddings, embeddings.embedding_dim)
                if layer is embeddings
                else RowsLinear(head.in_features, head.out_features, bias=head.bias is not None)
            )
        if layer is head and head.bias is not None:
            new.bias = head.bias
        new.share(layer.weight, rows, ids)
        model.set_submodule(_name_of(model, layer), new)


def refuse_whole(model: VisionLanguageModel) -> None:
    """Raise ConfigError where embeddings or head are modules to save, so that more than rows would be trained."""
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if layer.weight.requires_grad:
            raise ConfigError(
                f"tuner.coordinate_rows: true trains single rows of {_name_of(model, layer)}, which "
                "tuner.modules_to_save trains whole; leave one of them out"
            )


def layers_with_rows(model: VisionLanguageModel) -> Mapping[str, RowsEmbedding | RowsLinear]:
    """The layers of which only rows are trained, by name: embeddings and head, or none."""
    return {name: each for name, each in model.named_modules() if isinstance(each, RowsEmbedding | RowsLinear)}


def settle_rows(model: VisionLanguageModel) -> None:
    """Bring the rows into the matrices that they belong to."""
    for layer in layers_with_rows(model).values():
        layer.current_weight()


def current_weight(layer: nn.Module) -> Tensor:
    """The matrix of a head or an embedding as it is now."""
    return layer.current_weight() if isinstance(layer, RowsEmbedding | RowsLinear) else layer.weight  # type: ignore[return-value]


def _name_of(model: VisionLanguageModel, layer: nn.Module) -> str:
    return next(name for name, each in model.named_modules() if each is layer)
