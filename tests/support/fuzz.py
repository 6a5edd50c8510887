"""Number of examples of the property tests in tests/boundaries."""

import os


def examples(number: int) -> int:
    """Returns `number`, or the environment variable MSREC_FUZZ_EXAMPLES of `make fuzz`."""
    return int(os.environ.get("MSREC_FUZZ_EXAMPLES", number))
