"""Plan files as outputs: recognised, so that nothing else is overwritten."""

from pathlib import Path

from pydantic import ValidationError

from msrec.data.io.outputs import FileKind
from msrec.tools.planner.plan import Plan


def _is_plan(path: Path) -> bool:
    try:
        Plan.model_validate_json(path.read_bytes())
    except ValidationError:
        return False
    return True


PLAN = FileKind("a plan of msrec plan", _is_plan)
