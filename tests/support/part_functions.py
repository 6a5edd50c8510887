"""Functions of a part for tests of stages; worker processes import them."""

import os
import signal


def logged(log, deadly, deaths, part, out):
    """Notes the call in a file; kills its process in the first calls with a deadly part."""
    with log.open("a") as file:
        file.write(f"{part}\n")
    if part == deadly and log.read_text().split().count(str(part)) <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    (out / "square.txt").write_text(str(part**2))
    return {"twice": 2 * part}


def refuse(part, out):
    raise ValueError(f"part {part} is bad")
