"""`RecurrentParameters`: what `layer.rnn` is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class RecurrentParameters(nn.Module):
    """The parameters of a one-layer `nn.RNN`: its names, its initial values, and the same draws from the generator.

    It is no `nn.RNN`, whose forward would not be used, because torch.compile refuses to look at one. Calling it returns
    the parameters, so that whatever acts in a module's call does: pruning, parametrisations, offloading, sharding.

    Args:
        input_size: `C`.
        hidden_size: `H`.
        bias: whether there are biases; without, both are None.
        device: of every parameter.
        dtype: of every parameter.
        compact: whether to hold the diagonal of the recurrent matrix alone.

    Attributes:
        names: of the parameters, in the order in which a call returns them.
        weight_ih_l0: `[H, C]`.
        weight_hh_l0: `[H, H]`, unless compact.
        decay_l0: `[H]`, if compact: the diagonal of what `weight_hh_l0` would be.
        bias_ih_l0: `[H]`, or None.
        bias_hh_l0: `[H]`, or None.
    """

    weight_ih_l0: nn.Parameter
    weight_hh_l0: nn.Parameter
    decay_l0: nn.Parameter
    bias_ih_l0: nn.Parameter | None
    bias_hh_l0: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        device: torch.device | str | int | None,
        dtype: torch.dtype | None,
        compact: bool = False,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self.compact = compact
        self.names = ("weight_ih_l0", "decay_l0" if compact else "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        drawn = nn.RNN(input_size, hidden_size, nonlinearity="relu", bias=bias, device=device, dtype=dtype)
        parameters = dict(drawn.named_parameters())
        if compact:
            parameters["decay_l0"] = nn.Parameter(parameters["weight_hh_l0"].detach().diagonal().clone())
        for name in self.names:
            self.register_parameter(name, parameters.get(name))

    def forward(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The weights `[H, C]`, the recurrent ones `[H, H]` or `[H]`, and the biases `[H]` or None."""
        parameters = self._parameters
        try:
            found = tuple([parameters[name] for name in self.names])
        except KeyError:  # pruned, normalised or parametrised: an attribute or a property stands in for a parameter
            found = tuple([getattr(self, name) for name in self.names])
        return found  # type: ignore[return-value]

    def decay(self) -> Tensor:
        """The decay of each neuron, `[H]`: the diagonal of the recurrent matrix, where there is one."""
        recurrent: Tensor = self()[1]
        return recurrent if self.compact else recurrent.diagonal()

    @torch.no_grad()
    def set_decay(self, values: Tensor) -> None:
        """Makes `values` `[H]` the decays: of a matrix the diagonal, of a parametrised decay what its inverse gives."""
        name = self.names[1]
        held = getattr(self, name)
        values = values if self.compact else torch.diag_embed(values)
        if parametrize.is_parametrized(self, name):
            setattr(self, name, values.to(held))
        else:
            held.copy_(values)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws every parameter from the interval of `nn.RNN`, in its order."""
        bound = self.hidden_size**-0.5
        for parameter in self.parameters():
            if parameter is self._parameters.get("decay_l0"):  # drawn as the matrix is, for the same numbers
                drawn = parameter.new_empty(self.hidden_size, self.hidden_size).uniform_(-bound, bound)
                parameter.copy_(drawn.diagonal())
            else:
                parameter.uniform_(-bound, bound)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Loads, and takes the recurrent matrix of a layer that is not compact, or of snntorch's, for a decay."""
        key = f"{prefix}weight_hh_l0"
        if self.compact and key in state_dict:
            matrix = state_dict.pop(key)
            H = self.hidden_size
            if matrix.shape != (H, H):
                error_msgs.append(f"{key} must have shape [H, H] = [{H}, {H}], got {list(matrix.shape)}")
            elif not matrix.is_meta and (off := int(matrix.count_nonzero() - matrix.diagonal().count_nonzero())):
                error_msgs.append(
                    f"{key} must be diagonal for a layer with compact_decay=True, got {off} values off the diagonal "
                    "that are not zero: a layer with weight_hh_enable=True takes them"
                )
            else:
                state_dict[f"{prefix}decay_l0"] = matrix.diagonal().clone()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def flatten_parameters(self) -> None:
        """Does nothing, for programs that call it on an `nn.RNN`: there is no cuDNN buffer to be laid out."""

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The weights and the biases there are, as `nn.RNN` lists those of its one layer."""
        return [[value for value in self() if value is not None]]
