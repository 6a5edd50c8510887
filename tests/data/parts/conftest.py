"""Raw tables, and workers, for all tests of a conversion in parts."""

import pytest
from part_tables import write_raw

from msrec.data.engines.engines import Processes


@pytest.fixture(scope="session")
def workers():
    """Engine with two processes, which start once for all tests."""
    engine = Processes(2)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def raw_tables(tmp_path_factory):
    """Folder with three files of interactions, of 2,500, 1 and 3,499 rows."""
    folder = tmp_path_factory.mktemp("raw")
    write_raw(folder)
    return folder
