"""(output, branch) -> f'(x) in plain torch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from optiacts._torch import once
from optiacts.curves import ClosedForm, Curve
from optiacts.decoders.inverse import derivative_from_output
from optiacts.decoders.pieces import decode_in_pieces
from optiacts.decoders.polynomials import decode_float32
from optiacts.decoders.table import decode_table, table_index
from optiacts.packing import unpack


def branch(y: Tensor, bits: Tensor, curve: Curve) -> Tensor:
    """Which outputs are of the left branch (bool), from the packed side bits, if the curve has any."""
    return unpack(bits, y.shape) if curve.decoder.side_bits else y == 0


def decode(y: Tensor, left: Tensor, curve: Curve) -> Tensor:
    """f'(x) from the output and the branch (bool): float64 for float64, else float32."""
    if y.dtype in (torch.float64, torch.float32):
        if isinstance(curve.decoder, ClosedForm):
            if curve.decoder.searched and y.dtype == torch.float32:
                return decode_in_pieces(y, left, curve)
            return curve.decoder.slope(y, left).to(y.dtype)
        exact = y.dtype == torch.float64
        slope = derivative_from_output(curve, y, left) if exact else decode_float32(y, left, curve)
        return slope if curve.decoder.ends is None else torch.where(y >= curve.ceiling(y.dtype), 0.0, slope)
    table = _table_on(curve.name, y.dtype, y.device)
    half = left if curve.decoder.side_bits or curve.zero_is_flat else None
    return table.index_select(0, table_index(y, half).flatten()).view(y.shape)


@once
def _table_on(name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    return decode_table(name, dtype).to(device)
