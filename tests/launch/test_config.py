"""A run's config: options are described, for the reference page, and the import is quick."""

import subprocess
import sys

import pytest

from msrec.launch.config.backbone_section import BACKBONE_OPTIONS
from msrec.launch.config.run_config import RunConfig


def undescribed(section, prefix=""):
    for name, field in section.model_fields.items():
        if not field.description:
            yield prefix + name
        if hasattr(field.annotation, "model_fields"):
            yield from undescribed(field.annotation, f"{prefix}{name}.")


def test_every_option_has_a_description():
    assert list(undescribed(RunConfig)) == []


@pytest.mark.parametrize("name", BACKBONE_OPTIONS)
def test_every_backbone_option_has_a_description(name):
    assert list(undescribed(BACKBONE_OPTIONS[name])) == []


def test_importing_the_config_does_not_import_torchrec():
    """It takes two seconds, and `msrec launch` and dry runs need none of it."""
    code = "import sys, msrec.launch.config.run_config; print('torchrec' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
