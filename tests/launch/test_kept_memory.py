"""Ranks keep the memory that a step frees."""

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import resource, numpy
from msrec.launch.distributed import keep_freed_memory
keep_freed_memory()
def step():
    blocks = [numpy.ones(1 << 19) for _ in range(24)]  # of 4 MiB
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(**variables):
    environment = {name: text for name, text in os.environ.items() if "MALLOC" not in name}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(
        command, env=environment | variables, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_a_step_does_not_fetch_the_memory_of_the_step_before_again():
    assert page_faults() < 1000
    # Variables of the user replace the settings; this one alone leaves glibc's own.
    assert page_faults(MALLOC_ARENA_MAX="") > 20_000
