"""Applies a delta to the export that it was made against, which gives the new export."""

import os
import shutil
from pathlib import Path

from msrec.data.io.atomic_files import check_files
from msrec.data.io.outputs import new_folder
from msrec.data.io.paths import AnyPath
from msrec.launch.serving.delta.delta_folder import Delta, read_delta, writer_versions
from msrec.launch.serving.delta.parts import apply_rows, apply_values
from msrec.launch.serving.export_folder import (
    EXPORT,
    MANIFEST_FILE,
    export_version,
    read_manifest_file,
)


def apply_delta(base: Path, delta_folder: Path, out: AnyPath, *, overwrite: bool = False) -> Delta:
    """Writes the export that a delta makes of its base, bit for bit the one it was made of.

    The base stays as it is. `out` appears only if every file has the checksum of the new export.

    Args:
        base: the export that the delta was made against, or a link to it.
        delta_folder: as `write_delta` wrote it.
        out: the folder to write.
        overwrite: replace another export.

    Raises:
        FileNotFoundError: there is no such export or delta.
        ValueError: either is damaged, the delta belongs to another export, or `out` exists.
    """
    base = base.resolve()
    before = read_manifest_file(base)
    delta, after = read_delta(delta_folder)
    if (found := export_version(base)) != delta.base:
        raise ValueError(
            f"{delta_folder} must be applied to the export {delta.base} ({delta.base_checkpoint} "
            f"of {delta.base_run}); {base} is the export {found} ({before.checkpoint} of "
            f"{before.run}). Apply the deltas in their order, one after another."
        )
    replaced = [name for name, part in delta.parts.items() if part.kind == "whole"]
    kept = {n: before.crc32[n] for n in after.crc32 if n in before.crc32 and n not in replaced}
    check_files(base, kept, "The export is damaged: copy it again or export again.")
    with new_folder(out, EXPORT, [base, delta_folder], overwrite=overwrite) as folder:
        for name in after.crc32:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _make_file(base, delta_folder, delta, name, folder / name)
        shutil.copyfile(delta_folder / MANIFEST_FILE, folder / MANIFEST_FILE)
        check_files(folder, after.crc32, _advice(delta))
    return delta


def _make_file(base: Path, delta_folder: Path, delta: Delta, name: str, out: Path) -> None:
    part = delta.parts.get(name)
    if part is None:
        shutil.copyfile(base / name, out)
    elif part.kind == "rows":
        apply_rows(base / name, delta_folder, name, part, out)
    elif part.kind == "values":
        apply_values(base / name, delta_folder, name, out)
    else:
        shutil.copyfile(delta_folder / "whole" / name, out)


def _advice(delta: Delta) -> str:
    here = writer_versions()
    others = [f"{n} {v} (here {here[n]})" for n, v in delta.writers.items() if here.get(n) != v]
    if others:
        return f"The delta was made with {', '.join(others)}: install that, or copy the export."
    return "Copy the whole export instead of the delta."


def require_link(link: Path) -> None:
    """Refuses a path that is no link.

    Raises:
        ValueError: it is a folder or a file, or does not exist.
    """
    if not link.is_symlink():
        raise ValueError(
            f"{link} must be a link to an export, so that it can be pointed to another one; it is "
            f"none. Make one: ln -s EXPORT {link.name}"
        )


def point_link(link: Path, export: Path) -> None:
    """Points a link to an export in one step: a reader finds the old one or the new one."""
    scratch = link.with_name(f".{link.name}.partial")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(os.path.relpath(export.resolve(), link.parent.resolve()))
    scratch.replace(link)
