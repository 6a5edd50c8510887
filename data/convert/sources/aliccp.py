"""Ali-CCP as published: Taobao's log of items shown at three positions."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from msrec.data.convert.raw_tables import ID_FEATURES, Chunk, Feature, RawTables
from msrec.data.convert.sources.text_blocks import CsvFormat
from msrec.data.convert.sources.text_reader import TextReader, required_files
from msrec.data.labels import LabelOptions
from msrec.data.schema import Scenario

SITE = "https://tianchi.aliyun.com/dataset/408"
FILES = tuple(
    f"{kind}_{part}.csv"
    for kind in ("common_features", "sample_skeleton")
    for part in ("train", "test")
)
SCENARIO_FIELD, USER_FIELD, ITEM_FIELD = "301", "101", "205"
SCENARIOS = ("1", "2", "3")
USER_FIELDS = ("121", "122", "124", "125", "126", "127", "128", "129")
ROW_FIELDS = ("206", "207", "216", "508", "509", "702", "853")
"""Category, shop and brand of the item; crosses of the user with category, shop, brand, intent."""
LABELS = ("click", "purchase")
AFTER_CLICK = LabelOptions(exists_where="click")
SPLIT_SEED = 2022
SPLIT_COLUMN = "split"
PUBLISHED = {
    "Ali-CCP, Scenario-Wise-Rec, arXiv 2412.17374": {
        "position 1": (32_236_951, 89_283, 465_870),
        "position 2": (639_897, 2_561, 188_610),
        "position 3": (52_439_671, 150_471, 467_122),
    },
}
FEATURES = (
    *ID_FEATURES,
    *(Feature(f"f{field}", "user", column=field) for field in USER_FIELDS),
    *(Feature(f"f{field}", "interaction", column=field) for field in ROW_FIELDS),
)
SKELETON = CsvFormat(
    quote=None, header=("sample_id", "click", "purchase", "common_id", "num_features", "features")
)
COMMON = CsvFormat(quote=None, header=("common_id", "num_features", "features"))


def read_aliccp(folder: Path, reader: TextReader, label: str = "click") -> RawTables:
    """Reads sample_skeleton_{train,test}.csv and common_features_{train,test}.csv.

    The user of a row is in the common features that the row names. A row whose common features do
    not exist, or with a purchase but no click, is left out and counted. Column `split` has the
    published split, its test rows divided at random (seed 2022) into valid and test. The histories
    (109_14, 110_14, 127_14, 150_14; some hundred ids a row) and the weights of features are not
    read. There are no texts.

    The labels are `click`, and `purchase`, which exists only in clicked rows. With `purchase` as
    the first label it exists in all rows, as 0 without a click.

    Args:
        folder: with the four files.
        reader: reads the files.
        label: the first label, click or purchase.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: the label is unknown or a row is bad; names file, column and row.

    Source:
        Ma et al., SIGIR 2018 (ESMM, arXiv 1804.07931); files as described on
        tianchi.aliyun.com/dataset/408; scenarios (field 301) and split of Scenario-Wise-Rec.
    """
    if label not in LABELS:
        raise ValueError(f"label must be click or purchase; got {label!r}.")
    train, test, *skeletons = required_files(folder, "Ali-CCP", FILES, SITE)
    common = [_common_features(path, reader) for path in (train, test)]
    users = pl.concat(common).drop("common_id")
    return RawTables(
        name="aliccp",
        description="A shop's app; items are shown at three positions and clicked or not.",
        interactions=_interactions(skeletons, common, reader),
        users=users.unique("user_key", keep="first", maintain_order=True),
        items=pl.DataFrame(schema={"item_key": pl.Int64}),
        scenarios=[
            Scenario(name=f"position {code}", description=f"Position {code} of the app.")
            for code in SCENARIOS
        ],
        features=FEATURES,
        labels=(label, *(name for name in LABELS if name != label)),
        label_options={"purchase": AFTER_CLICK} if label == "click" else {},
        files={"interactions": str(folder), "users": str(train), "items": str(skeletons[0])},
        unknown_keys="add",
        published=PUBLISHED,
        differs_from_published="" if label == "click" else "the published label is click",
    )


def _field(name: str) -> pl.Expr:
    r"""Id of the first feature of a field.

    Features are `name \x02 id \x03 weight`, separated by `\x01`.
    """
    return pl.col("features").str.extract(rf"(?:^|\x01){name}\x02(\d+)\x03").cast(pl.Int64)


def _common_features(path: Path, reader: TextReader) -> pl.DataFrame:
    """Returns common_id, user_key and the fields of the user."""
    columns = {"common_id": str, "features": str}
    fields = {"user_key": _field(USER_FIELD), **{name: _field(name) for name in USER_FIELDS}}
    has_user, must = pl.col("user_key").is_not_null(), f"name a user (field {USER_FIELD})"
    frames = []
    for frame in reader.csv(path, columns, COMMON):
        rows = frame.with_columns(**fields)
        rows = reader.row_filter.keep(rows, "features", has_user, path, must)
        frames.append(rows.drop("row", "features"))
    return reader.table(frames, path, "common_id", "common_id")


def _interactions(
    skeletons: list[Path], common: list[pl.DataFrame], reader: TextReader
) -> Iterator[Chunk]:
    exclude, keep = reader.row_filter.exclude, reader.row_filter.keep
    columns = {"click": int, "purchase": int, "common_id": str, "features": str}
    fields = {"item_key": _field(ITEM_FIELD), "scenario": _field(SCENARIO_FIELD) - 1}
    fields |= {name: _field(name) for name in ROW_FIELDS}
    unclicked = (pl.col("purchase") == 1) & (pl.col("click") == 0)
    rng = np.random.default_rng(SPLIT_SEED)
    for part, path, users in zip(("train", "test"), skeletons, common, strict=True):
        keys = users.select("common_id", "user_key")
        lost = f"{path}: a row whose common features are not in common_features_{part}.csv"
        for frame in reader.csv(path, columns, SKELETON):
            rows = frame.with_columns(**fields)
            rows = rows.join(keys, on="common_id", how="left", maintain_order="left")
            rows = exclude(rows, unclicked, f"{path}: bought without a click")
            rows = exclude(rows, pl.col("user_key").is_null(), lost)
            for column, name in (("item_key", ITEM_FIELD), ("scenario", SCENARIO_FIELD)):
                has_field, must = pl.col(column).is_not_null(), f"have field {name}"
                rows = keep(rows, "features", has_field, path, must)
            if part == "train":
                split = pl.lit("train")
            else:
                is_test = pl.Series(rng.random(rows.height) < 0.5)
                split = pl.when(is_test).then(pl.lit("test")).otherwise(pl.lit("valid"))
            rows = rows.drop("common_id", "features")
            yield Chunk(str(path), rows.with_columns(split.alias(SPLIT_COLUMN)))
