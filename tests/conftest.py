"""What a test leaves in its process must not reach the next one."""

import signal

import pytest


@pytest.fixture(autouse=True)
def signals():
    """torchx's local scheduler leaves its own; a fork in a later test would outlive SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
