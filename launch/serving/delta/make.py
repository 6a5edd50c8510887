"""Delta of two exports: what the second one has changed, grown or added."""

import filecmp
import shutil
from pathlib import Path

from msrec.data.io.atomic_files import checksums, write_json
from msrec.data.io.outputs import check_output, new_folder
from msrec.data.io.paths import AnyPath
from msrec.launch.serving.delta.delta_folder import (
    DELTA,
    DELTA_FILE,
    Delta,
    Part,
    writer_versions,
)
from msrec.launch.serving.delta.parts import write_new_values, write_rows
from msrec.launch.serving.export_folder import MANIFEST_FILE, export_version, read_manifest_file


def check_delta(base: Path, new: AnyPath, out: AnyPath, *, overwrite: bool = False) -> None:
    """Refuses a delta that cannot be written, before the new export is made.

    Raises:
        FileNotFoundError, ValueError: `base` is no export, or `out` would replace other files.
    """
    read_manifest_file(base)
    check_output(out, DELTA, [base, new], overwrite=overwrite)


def write_delta(base: Path, new: Path, out: AnyPath, *, overwrite: bool = False) -> Delta:
    """Writes the delta from one export to another; the folder appears only when it is complete.

    Args:
        base: the export that servers have.
        new: the export that they shall have.
        out: the folder to write.
        overwrite: replace an older delta.

    Raises:
        FileNotFoundError: `base` or `new` is no export.
        ValueError: `out` exists.
    """
    before, after = read_manifest_file(base), read_manifest_file(new)
    with new_folder(out, DELTA, [base, new], overwrite=overwrite) as folder:
        parts = {}
        for name, crc in after.crc32.items():
            is_same = before.crc32.get(name) == crc and filecmp.cmp(base / name, new / name, False)
            if not is_same:
                parts[name] = _write_part(base, new, folder, name)
        shutil.copyfile(new / MANIFEST_FILE, folder / MANIFEST_FILE)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        delta = Delta(
            base=export_version(base),
            base_run=before.run,
            base_checkpoint=before.checkpoint,
            parts=parts,
            writers=writer_versions(),
            num_bytes=sum(path.stat().st_size for path in paths),
            export_bytes=sum((new / name).stat().st_size for name in after.crc32),
            crc32=checksums(folder, paths),
        )
        write_json(folder / DELTA_FILE, delta.model_dump(mode="json"))
    return delta


def _write_part(base: Path, new: Path, folder: Path, name: str) -> Part:
    part = None
    if (base / name).is_file():
        if name.endswith(".npy"):
            part = write_rows(base / name, new / name, folder, name)
        elif name.endswith(".parquet"):
            part = write_new_values(base / name, new / name, folder, name)
    if part is None:
        part = Part(kind="whole")
        (folder / "whole" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(new / name, folder / "whole" / name)
    return part
