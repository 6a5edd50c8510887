"""Every option of a run's config has a description, from which its reference page is made."""

import pytest

from msrec.launch.backbone_config import BACKBONE_OPTIONS
from msrec.launch.config import RunConfig


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
