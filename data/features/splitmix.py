"""A hash of integers, equal on every machine and for every order of the values."""

import numpy as np
import numpy.typing as npt


def splitmix64(numbers: npt.NDArray[np.integer], key: int) -> npt.NDArray[np.uint64]:
    """Returns 64 random-looking bits for each number; another key gives other bits.

    It is a bijection of 64 bits, so that different numbers keep different hashes.

    Shape:
        numbers: (N,).

    Source:
        Steele et al., OOPSLA 2014.

    Example:
        >>> splitmix64(np.array([0, 1]), key=0)
        array([                   0, 16294208416658607535], dtype=uint64)
    """
    with np.errstate(over="ignore"):
        z = numbers.astype(np.uint64) + np.uint64(key % (1 << 64))
        z = z * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z ^= z >> np.uint64(31)
    return z
