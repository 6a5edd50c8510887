"""Ali-CCP as it is published: Taobao's log of shown items under three positions."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from msrec.data.convert.raw_tables import ID_FEATURES, Chunk, Feature, Published, RawTables
from msrec.data.convert.row_filter import RowFilter
from msrec.data.convert.sources.text_files import (
    INTEGER,
    TEXT,
    Column,
    Report,
    first_of_each,
    read_csv,
)
from msrec.data.schema import Scenario

SCENARIO_FIELD, USER_FIELD, ITEM_FIELD = "301", "101", "205"
SCENARIOS = ("1", "2", "3")
USER_FIELDS = ("121", "122", "124", "125", "126", "127", "128", "129")
ROW_FIELDS = ("206", "207", "216", "508", "509", "702", "853")
"""The item's category, shop, brand; crosses of the user with category, shop, brand, intent."""
SPLIT_SEED = 2022
SPLIT_COLUMN = "split"
PUBLISHED = (
    Published(
        "Ali-CCP, Scenario-Wise-Rec, arXiv 2412.17374",
        {
            "position 1": (32_236_951, 89_283, 465_870),
            "position 2": (639_897, 2_561, 188_610),
            "position 3": (52_439_671, 150_471, 467_122),
        },
    ),
)
FEATURES = (
    *ID_FEATURES,
    *(Feature(f"f{field}", "user", column=field) for field in USER_FIELDS),
    *(Feature(f"f{field}", "interaction", column=field) for field in ROW_FIELDS),
)
SKELETON = ("sample_id", "click", "purchase", "common_id", "num_features", "features")
COMMON = ("common_id", "num_features", "features")


def read_aliccp(
    folder: Path, faults: RowFilter, report: Report | None = None, label: str = "click"
) -> RawTables:
    """Read sample_skeleton_{train,test}.csv and common_features_{train,test}.csv.

    A row's user stands in the common features that it names; a row that names none, or bought
    without a click, is left out and counted. Column `split` has the given split, the test rows
    halved at random (seed 2022) into valid and test. The histories (109_14, 110_14, 127_14, 150_14;
    some hundred ids a row) and the weights of features are not read, and there are no texts.

    Args:
        folder: with the four files.
        faults: decides what happens to a bad row.
        report: told the bytes read.
        label: click or purchase.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: the label is unknown or a row is bad; names file, column and row.

    Source:
        Ma et al., SIGIR 2018 (ESMM, arXiv 1804.07931); files as tianchi.aliyun.com/dataset/408
        describes them; scenarios (field 301) and split of Scenario-Wise-Rec.
    """
    if label not in ("click", "purchase"):
        raise ValueError(f"label must be click or purchase; got {label!r}.")
    names = [
        f"{kind}_{part}.csv"
        for kind in ("common_features", "sample_skeleton")
        for part in ("train", "test")
    ]
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} must exist: Ali-CCP is {', '.join(names)}, from "
                "https://tianchi.aliyun.com/dataset/408."
            )
    common = {
        part: _common(folder / f"common_features_{part}.csv", faults, report)
        for part in ("train", "test")
    }
    users = pl.concat([frame.drop("common_id") for frame in common.values()])
    users = users.unique("user_key", keep="first", maintain_order=True)
    keys = {part: frame.select("common_id", "user_key") for part, frame in common.items()}
    return RawTables(
        name="aliccp",
        description="A shop's app; items are shown at three positions and clicked or not.",
        interactions=_interactions(folder, keys, label, faults, report),
        users=users,
        items=pl.DataFrame(schema={"item_key": pl.Int64}),
        scenarios=[
            Scenario(name=f"position {code}", description=f"Position {code} of the app.")
            for code in SCENARIOS
        ],
        features=FEATURES,
        files={
            "interactions": str(folder),
            "users": str(folder / "common_features_train.csv"),
            "items": str(folder / "sample_skeleton_train.csv"),
        },
        unknown_keys="add",
        published=PUBLISHED,
        unlike_published="" if label == "click" else "the published label is click",
    )


def _field(name: str) -> pl.Expr:
    """The id of a field's first feature: name, 02, id, 03, weight (bytes); 01 between features."""
    return pl.col("features").str.extract(rf"(?:^|\x01){name}\x02(\d+)\x03").cast(pl.Int64)


def _common(path: Path, faults: RowFilter, report: Report | None) -> pl.DataFrame:
    """Columns common_id, user_key and the user's fields."""
    columns = [Column("common_id", TEXT), Column("features", TEXT)]
    frames = []
    for frame in read_csv(path, columns, faults, report, quote=None, header=COMMON):
        fields = frame.select(
            "row",
            "common_id",
            "features",
            user_key=_field(USER_FIELD),
            **{name: _field(name) for name in USER_FIELDS},
        )
        args = (fields["features"].str.head(60), str(path), "name a user (field 101)", "Mend it.")
        frames.append(faults.keep(fields, fields["user_key"].is_null(), *args))
    whole = pl.concat(frames).drop("row", "features")
    return first_of_each(whole, "common_id", path, faults)


def _interactions(
    folder: Path,
    keys: dict[str, pl.DataFrame],
    label: str,
    faults: RowFilter,
    report: Report | None,
) -> Iterator[Chunk]:
    columns = [Column("click", INTEGER), Column("purchase", INTEGER)]
    columns += [Column("common_id", TEXT), Column("features", TEXT)]
    halves = np.random.default_rng(SPLIT_SEED)
    for part, known in keys.items():
        path = folder / f"sample_skeleton_{part}.csv"
        for frame in read_csv(path, columns, faults, report, quote=None, header=SKELETON):
            rows = frame.select(
                *("row", "common_id", "features", "click", "purchase"),
                label=label,
                item_key=_field(ITEM_FIELD),
                scenario=_field(SCENARIO_FIELD) - 1,
                **{name: _field(name) for name in ROW_FIELDS},
            ).join(known, on="common_id", how="left", maintain_order="left")
            bought = (rows["purchase"] == 1) & (rows["click"] == 0)
            rows = faults.exclude(rows, bought, f"{path}: bought without a click")
            lost = f"{path}: a row whose common features are not in common_features_{part}.csv"
            rows = faults.exclude(rows, rows["user_key"].is_null(), lost)
            for column, field in (("item_key", ITEM_FIELD), ("scenario", SCENARIO_FIELD)):
                text = rows["features"].str.head(60)
                args = (text, str(path), f"have field {field}", "Mend the row.")
                rows = faults.keep(rows, rows[column].is_null(), *args)
            if part == "train":
                split = pl.lit("train")
            else:
                is_test = pl.Series(halves.random(rows.height) < 0.5)
                split = pl.when(is_test).then(pl.lit("test")).otherwise(pl.lit("valid"))
            drop = ("common_id", "features", "click", "purchase")
            yield Chunk(str(path), rows.drop(drop).with_columns(split.alias(SPLIT_COLUMN)))
