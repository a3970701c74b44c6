"""The arrays of a store over all its parts, by name."""

from typing import Any

import xarray as xr

from engine.errors import StrataError
from engine.store.choices import layer_indices, state_layers
from engine.store.in_memory import read_leading
from engine.store.joined import join_parts
from engine.store.part import Part

__all__ = ["JoinedArrays"]


class JoinedArrays:
    """Labelled Dask arrays over parts; the face of ``Store`` towards xarray.

    Attributes
    ----------
    record
        ``store.json``.
    parts
        Committed parts, in order.
    url
        What to call the store in a message.
    """

    record: dict[str, Any]
    parts: tuple[Part, ...]
    url: str

    @property
    def hidden_states(self) -> xr.DataArray:
        """(layer, token, dim), float16 or float32, over all parts; one Dask chunk per shard or large layer.

        As every array of tokens, NaN at tokens whose role it was not chosen for; its attribute ``roles`` then names
        those that it keeps (and ``layers`` or ``blocks`` those).
        """
        return self._joined("token", "hidden_states")

    def load_layer(self, layer: int) -> xr.DataArray:
        """Hidden states of one layer in memory: ``hidden_states.sel(layer=layer).load()`` in half the memory.

        Of a store on another machine, each thread also holds a few chunks of 4 MiB.

        Parameters
        ----------
        layer
            A stored layer number.

        Returns
        -------
        xr.DataArray
            (token, dim), float16 or float32 as stored, over all parts, with all coordinates of tokens. Read by as
            many threads as there are cores.

        Raises
        ------
        UsageError
            There is no such layer.
        StrataError
            No part holds hidden states, or one is damaged.
        """
        states = self.hidden_states
        [place] = layer_indices(state_layers(self.record["capture"]), [layer])
        return states[place].copy(data=read_leading(self.parts, "token/hidden_states", place))

    @property
    def unit_mean(self) -> xr.DataArray:
        """(layer, role, sample, dim) float32: mean of unit vectors; NaN where ``token_count`` is 0."""
        return self._joined("sample", "unit_mean")

    @property
    def mean(self) -> xr.DataArray:
        """(layer, role, sample, dim) float32: mean of states; NaN where ``token_count`` is 0."""
        return self._joined("sample", "mean")

    @property
    def normed_unit_mean(self) -> xr.DataArray:
        """(role, sample, dim) float32: mean of unit vectors of the last layer after the final norm."""
        return self._joined("sample", "normed_unit_mean")

    @property
    def token_count(self) -> xr.DataArray:
        """(role, sample) int32."""
        return self._joined("sample", "token_count")

    @property
    def attention(self) -> xr.DataArray:
        """(block, query, head, key) float32: what each query's position gives to each key; its sum over keys is 1.

        Keys of all samples, one after the other; the coordinate ``sample`` is the row of `samples`, ``position`` counts
        within it, ``token`` is the place on the token axis (of `hidden_states`), -1 where that token is not stored. NaN
        where a sample does not have the query.
        """
        return self._joined("key", "attention")

    @property
    def attention_norm(self) -> xr.DataArray:
        """(block, query, key) float32: norm of what a key's value adds to the query's position, summed over heads."""
        return self._joined("key", "attention_norm")

    @property
    def value_norm(self) -> xr.DataArray:
        """(block, head, token) float32: norm of a token's value after the head's part of the output projection."""
        return self._joined("token", "value_norm")

    @property
    def attention_mass(self) -> xr.DataArray:
        """(block, head, token, source_role) float32: how much of a token's attention goes to each role."""
        return self._joined("token", "attention_mass")

    @property
    def attention_output(self) -> xr.DataArray:
        """(block, token, dim), float16 or float32: output of each block's attention."""
        return self._joined("token", "attention_output")

    @property
    def mlp_output(self) -> xr.DataArray:
        """(block, token, dim), float16 or float32: output of each block's MLP."""
        return self._joined("token", "mlp_output")

    @property
    def lens_token_id(self) -> xr.DataArray:
        """(layer, token, rank) int32: ids of the pieces with the largest logits, LogitLens as extraction found it.

        Best first. -1 at tokens and layers that it was not chosen for, which its attributes ``roles`` and ``layers``
        name. Pieces are those of `model.vocabulary`.
        """
        return self._joined("token", "lens_token_id")

    @property
    def lens_logit(self) -> xr.DataArray:
        """(layer, token, rank) float32: logits of `lens_token_id`, NaN where that is -1."""
        return self._joined("token", "lens_logit")

    def _joined(self, axis: str, name: str) -> xr.DataArray:
        """One array over all parts, with the axis's coordinates and the part number."""
        array = join_parts(self.parts, axis, name)
        if array is None:
            raise StrataError(
                f"no committed part of {self.url} holds {axis}/{name}: "
                f"captured was {self.record['capture'].get('tensors', 'something else')}"
            )
        return array
