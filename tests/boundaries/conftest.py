"""Property tests draw the same examples in each `make test`, and new ones in `make fuzz`."""

import os

from hypothesis import settings

if "MSREC_FUZZ_EXAMPLES" not in os.environ:
    settings.register_profile("repeatable", derandomize=True, database=None)
    settings.load_profile("repeatable")
