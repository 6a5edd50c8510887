"""Raw tables that a conversion in parts must divide, and a comparison of datasets."""

import filecmp
import gzip
import json

import numpy as np
import polars as pl

ROWS, USERS, ITEMS = 6000, 300, 200
MAPPING = """
interaction: {query: sparse, tags: multi, page: sparse, price: dense}
user: {age: sparse}
item: {genres: multi, weight: dense}
labels: {click: binary, watch: {kind: regression, optional: true, clip: [0, 5]}}
more_labels: {rating: [1, 2]}
timestamp_unit: ms
"""
INTEGERS = "integers: [item_id, scenario, age, page]\n"


def write_raw(folder, **changed):
    (folder / "tables.yaml").write_text(MAPPING)
    (folder / "interactions").mkdir()
    rng = np.random.default_rng(0)
    ages, weights = rng.integers(0, 5, USERS), rng.random(ITEMS)
    users = {"user_id": [f"u{n}" for n in range(USERS)], "age": ages}
    items = {"item_id": np.arange(ITEMS) * 7, "genres": ["a|b", "b|c"] * 100, "weight": weights}
    pl.DataFrame(users).write_parquet(folder / "users.parquet")
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    page, watch = rng.integers(0, 50, ROWS), rng.random(ROWS) * 9
    columns = {
        "user_id": [f"u{n}" for n in (rng.random(ROWS) ** 2 * USERS).astype(int)],
        "item_id": rng.integers(0, ITEMS, ROWS) * 7,
        "scenario": rng.integers(3, 6, ROWS),
        "click": rng.integers(0, 2, ROWS),
        "watch": [None if p == 4 else w for p, w in zip(page, watch, strict=True)],
        "rating": rng.integers(1, 6, ROWS),
        "timestamp": 10**12 + rng.integers(0, 10**10, ROWS) // 10**7 * 10**7,
        "query": [f"q{n}" for n in (rng.random(ROWS) ** 3 * 900).astype(int)],
        "tags": [f"{a};{b}" for a, b in rng.integers(0, 9, (ROWS, 2))],
        "page": [None if p == 3 else int(p) for p in page],
        "price": rng.random(ROWS),
        "part": np.array(["train", "valid", "test"])[np.minimum(rng.integers(0, 10, ROWS), 2)],
        **changed,
    }
    rows = pl.DataFrame(columns)
    for number, (start, stop) in enumerate(((0, 2500), (2500, 2501), (2501, ROWS))):
        path = folder / "interactions" / f"day-{number}.parquet"
        rows.slice(start, stop - start).write_parquet(path, row_group_size=1000)


def write_as(frame, path):
    """Writes a table in the format of the file's name."""
    name = path.name.removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        text = frame.write_csv(separator="\t" if name.endswith("tsv") else ",")
    else:
        text = "".join(json.dumps(row) + "\n" for row in frame.to_dicts())
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def as_text(raw, folder, suffix, yaml=INTEGERS, lists=()):
    """Copies raw tables as text; columns in `lists` become lists of their values between `;`."""
    folder.mkdir()
    (folder / "tables.yaml").write_text((raw / "tables.yaml").read_text() + yaml)
    for path in sorted(raw.rglob("*.parquet")):
        frame = pl.read_parquet(path)
        frame = frame.with_columns(pl.col(c).str.split(";") for c in lists if c in frame.columns)
        target = folder / path.relative_to(raw).with_suffix(suffix)
        target.parent.mkdir(exist_ok=True)
        write_as(frame, target)
    return folder


def differences(first, second):
    """Returns the files that only one of two folders has, or that differ."""
    files = [
        {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        for folder in (first, second)
    ]
    changed = [
        name
        for name in files[0] & files[1]
        if not filecmp.cmp(first / name, second / name, shallow=False)
    ]
    return sorted(files[0] ^ files[1]) + sorted(changed)
