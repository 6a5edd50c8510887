"""Build hook of hatchling: `tools/api` becomes the root of the package, in wheels and checkouts."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LAYERS = ("data", "model", "launch", "tools")
ROOT_PACKAGE = "tools/api"
ROOT_FILES = ("__init__.py", "__main__.py", "planner.py", "py.typed")


class PackageHook(BuildHookInterface):
    """Maps the four folders and the root package to `msrec`.

    A wheel gets copies. An editable install gets a folder of links, `build/editable/msrec`, so that
    editors and type checkers follow every import and new files need no new installation.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Runs before a build; `version` is "standard" or "editable"."""
        root = Path(self.root)
        if version == "editable":
            package = root / "build" / "editable" / "msrec"
            package.mkdir(parents=True, exist_ok=True)
            for name in LAYERS:
                _link(package / name, Path("../../..") / name)
            for name in ROOT_FILES:
                _link(package / name, Path("../../..") / ROOT_PACKAGE / name)
        else:
            for name in ROOT_FILES:
                build_data["force_include"][str(root / ROOT_PACKAGE / name)] = f"msrec/{name}"


def _link(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)
