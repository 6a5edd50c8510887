"""The image of a job that runs in containers."""

import torchx
from torchx.specs import AppDef
from torchx.specs.finder import ComponentValidationException


def require_image(app: AppDef, scheduler: str) -> None:
    """Refuse a job that would start in torchx's own image, which has no msrec.

    Raises:
        ComponentValidationException: no image was given; torchx shows its text and no stack.
    """
    if app.roles[0].image == torchx.IMAGE:
        raise ComponentValidationException(
            f"{scheduler} needs an image with msrec in it; got none. Give --image NAME, or "
            "image: NAME in the profile."
        )
