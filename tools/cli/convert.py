"""`msrec convert ...`: one command a source, all with the same options for the split."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from msrec.data.io.paths import local_path, to_path

convert_app = typer.Typer(help="Published data sets to a dataset folder.", no_args_is_help=True)

ABOUT = {
    "movielens": "MovieLens-1M: ratings.dat, users.dat, movies.dat.",
    "kuaisar": "KuaiSAR, full or small: search and recommendation of one video app.",
    "kuairand": "KuaiRand-1K, Pure or 27K: the tabs of one video app.",
    "amazon": "Amazon reviews of 2014, 2018 or 2023: a product category is a scenario.",
    "douban": "Douban: books, music and films.",
    "aliccp": "Ali-CCP: three positions of one shop's app.",
    "tables": "Plain interactions.parquet, items.parquet, users.parquet.",
}

SHARED: dict[str, tuple[Any, Any]] = {
    "raw": (
        Annotated[
            Path, typer.Argument(help="folder with the files as published", parser=local_path)
        ],
        ...,
    ),
    "out": (
        Annotated[Path, typer.Argument(help="dataset folder to make", parser=local_path)],
        ...,
    ),
    "protocol": (
        Annotated[
            Literal["scenario-wise", "temporal", "per-user-last"] | None,
            typer.Option(
                help="scenario-wise: published scenarios, random 8:1:1 or as given; temporal: "
                "global time 8:1:1; per-user-last: each user's last row tests"
            ),
        ],
        None,
    ),
    "split": (
        Annotated[
            Literal["random", "time", "user_last", "given"] | None,
            typer.Option(
                help="instead of a protocol: of all rows, by global time, each user's last rows, "
                "or by a column [default: random, or as published]"
            ),
        ],
        None,
    ),
    "seed": (Annotated[int, typer.Option(help="of a random split")], 0),
    "fractions": (
        Annotated[
            tuple[float, float, float],
            typer.Option(help="with --split: train, valid and test; they sum to 1"),
        ],
        (0.8, 0.1, 0.1),
    ),
    "last": (
        Annotated[
            int | None,
            typer.Option(help="with --split user_last: test rows of a user, and as many valid"),
        ],
        None,
    ),
    "split_column": (
        Annotated[str | None, typer.Option(help="with --split given: says train, valid or test")],
        None,
    ),
    "bad_rows": (
        Annotated[
            Literal["fail", "skip"],
            typer.Option(help="refuse the first bad row by name, or leave them out and count"),
        ],
        "fail",
    ),
    "grow_from": (
        Annotated[
            Path | None,
            typer.Option(
                parser=to_path,
                help="older dataset folder: its values keep their table rows, new ones come "
                "behind, for training on with init_from",
            ),
        ],
        None,
    ),
    "hash": (
        Annotated[
            list[str] | None,
            typer.Option(
                help="feature with a table of fixed size, as user_id=100000, or user_id=100000x2 "
                "for two hashes; may be repeated"
            ),
        ],
        None,
    ),
    "overwrite": (
        Annotated[bool, typer.Option("--overwrite", help="replace the dataset folder OUT")],
        False,
    ),
}

OWN: dict[str, dict[str, tuple[Any, Any]]] = {
    "movielens": {
        "scenario": (
            Annotated[
                Literal["age", "genre"],
                typer.Option(help="age groups 1-18 / 25 / 35+, or genre groups"),
            ],
            "age",
        )
    },
    "kuairand": {
        "tabs": (
            Annotated[str, typer.Option(help="scenarios: tabs from 0 to 14; the rest is left out")],
            "0,1,2,4,6",
        ),
        "label": (
            Annotated[str, typer.Option(help="is_click, is_like, long_view, ...")],
            "is_click",
        ),
    },
    "amazon": {
        "categories": (
            Annotated[
                str, typer.Option(help="scenarios, such as Beauty,Toys_and_Games [default: all]")
            ],
            "",
        ),
        "above": (Annotated[float, typer.Option(help="a rating above this is positive")], 3.0),
    },
    "aliccp": {
        "label": (Annotated[Literal["click", "purchase"], typer.Option()], "click"),
    },
    "tables": {
        "scenario_column": (Annotated[str, typer.Option()], "scenario"),
        "label": (Annotated[str, typer.Option(help="label column")], "label"),
        "mapping": (
            Annotated[
                Path | None,
                typer.Option(help="names, features and texts [default: RAW/tables.yaml]"),
            ],
            None,
        ),
    },
}
"""Options of one source only: annotation and default, under the names of its reader."""

LISTS: dict[str, Callable[[str], Any]] = {"tabs": int, "categories": str}
"""Options that hold several values, separated by commas."""


def _command(source: str) -> Callable[..., None]:
    """A function that typer can read: its signature is made of the tables above."""

    def command(**options: Any) -> None:
        from msrec.tools.convert import convert

        convert(source, **_split_lists(options))

    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=annotation,
            **({} if default is ... else {"default": default}),
        )
        for name, (annotation, default) in {**SHARED, **OWN.get(source, {})}.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__doc__ = ABOUT[source]
    return command


def _split_lists(options: Mapping[str, Any]) -> dict[str, Any]:
    lists = {n: comma_list(n, options[n], kind) for n, kind in LISTS.items() if n in options}
    return {**options, **lists}


def comma_list(name: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """Values between commas.

    Raises:
        ValueError: one is not of the kind.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    try:
        return [kind(word) for word in words]
    except ValueError:
        raise ValueError(f"--{name} must be numbers separated by commas; got {text!r}.") from None


for _source in ABOUT:
    convert_app.command(_source)(_command(_source))
