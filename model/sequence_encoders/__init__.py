"""Registry of the sequence encoders: baselines over ordered histories by learned item vectors."""

from msrec.model.sequence_encoders.bst import BST
from msrec.model.sequence_encoders.din import DIN
from msrec.model.sequence_encoders.hstu import HSTU
from msrec.model.sequence_encoders.sim import SIM

SEQUENCE_ENCODERS: dict[str, type[DIN | SIM | BST | HSTU]] = {
    "din": DIN,
    "sim": SIM,
    "bst": BST,
    "hstu": HSTU,
}
