"""What travels between machines: numbers of a few bits, packed so that whole vectors are treated at once."""

from gracile.wire.blocks import BLOCK, sum_bits
from gracile.wire.packing import (
    add_,
    base3_words,
    decode_,
    from_base3_,
    kernels,
    mean_,
    round_,
    scaler,
    ternarize_,
    to_base3_,
    words,
)

__all__ = [
    "BLOCK",
    "add_",
    "base3_words",
    "decode_",
    "from_base3_",
    "kernels",
    "mean_",
    "round_",
    "scaler",
    "sum_bits",
    "ternarize_",
    "to_base3_",
    "words",
]
