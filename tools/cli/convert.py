"""`msrec convert ...`: a command for each source, all with the same options for the split."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.exceptions import TyperException
from typer.main import get_command

from msrec.data.io.paths import local_path, to_path
from msrec.tools.bench.harness.options import comma_list

convert_app = typer.Typer(
    name="convert", help="Convert raw data to a dataset folder.", no_args_is_help=True
)

ABOUT = {
    "movielens": "MovieLens-1M: ratings.dat, users.dat, movies.dat.",
    "kuaisar": "KuaiSAR, full or small: search and recommendation of one video app.",
    "kuairand": "KuaiRand-1K, Pure or 27K: the tabs of one video app.",
    "amazon": "Amazon reviews of 2014, 2018 or 2023: each product category is a scenario.",
    "douban": "Douban: books, music and films.",
    "aliccp": "Ali-CCP: three positions of one shop's app.",
    "tables": "Plain tables: interactions, items, users (Parquet, CSV, JSON, Delta, Iceberg).",
}

Option = tuple[Any, Any]
"""Annotation and default of a parameter of a command; `...` if the parameter is required."""


def _option(kind: Any, default: Any, text: str, **settings: Any) -> Option:
    return Annotated[kind, typer.Option(help=text, **settings)], default


def _folder(text: str) -> Option:
    return Annotated[Path, typer.Argument(help=text, parser=to_path)], ...


SPLIT: dict[str, Option] = {
    "protocol": _option(
        Literal["scenario-wise", "temporal", "per-user-last"] | None,
        None,
        "split of a known protocol: scenario-wise (published scenarios, random 8:1:1 or as "
        "published), temporal (global time, 8:1:1) or per-user-last (the last row of each user is "
        "test, the one before is valid)",
    ),
    "split": _option(
        Literal["random", "time", "user_last", "given"] | None,
        None,
        "how to split the rows, if not by a protocol: at random, by global time, by the last rows "
        "of each user, or as given in a column (default: as published, else random)",
    ),
    "seed": _option(int, 0, "random seed of a random split"),
    "fractions": _option(
        tuple[float, float, float],
        (0.8, 0.1, 0.1),
        "with --split: shares of train, valid and test, which sum to 1",
    ),
    "last": _option(
        int | None,
        None,
        "with --split user_last: number of test rows of each user, and as many valid rows "
        "(default: by --fractions)",
    ),
    "split_column": _option(
        str | None,
        None,
        "with --split given: column of the interactions that holds train, valid or test",
    ),
}
"""Options that make the split, under the names of `split_choice`."""

SHARED: dict[str, Option] = {
    "raw": _folder("folder with the raw files, of `tables` also s3://..."),
    "out": _folder("dataset folder to make, also s3://..."),
    **SPLIT,
    "bad_rows": _option(
        Literal["fail", "skip"],
        "fail",
        "what to do with bad rows: stop with an error about the first one, or leave them out and "
        "count them",
    ),
    "grow_from": _option(
        Path | None,
        None,
        "older dataset folder whose values keep their table rows; new values get rows after them, "
        "so that training can go on with init_from",
        parser=to_path,
    ),
    "hash": _option(
        list[str] | None,
        None,
        "feature that gets a table of a fixed number of rows instead of a vocabulary: "
        "user_id=100000, or user_id=100000x2 for two hashes; may be repeated",
    ),
    "managed": _option(
        list[str] | None,
        None,
        "feature whose table has a fixed number of rows, which the model gives to new values while "
        "it trains and takes from old ones: user_id=100000; may be repeated",
    ),
    "min_rows": _option(
        list[str] | None,
        None,
        "feature whose values with fewer training rows get no row of its table: user_id=5; they "
        "are row 0, like values that training did not see, and are counted; may be repeated",
    ),
    "histories": (
        Annotated[
            bool,
            typer.Option(
                "--histories",
                help="index the earlier events of every row, by both protocols of "
                "`msrec histories`, for runs with sequence.protocol",
            ),
        ],
        False,
    ),
    "overwrite": (
        Annotated[bool, typer.Option("--overwrite", help="replace an older dataset folder OUT")],
        False,
    ),
}
"""Arguments and options of all sources."""

OWN: dict[str, dict[str, Option]] = {
    "movielens": {
        "scenario": _option(
            Literal["age", "genre"],
            "age",
            "what makes a scenario: the age group of the user (below 25, 25-34, 35 and older), or "
            "the group of the film's first genre",
        )
    },
    "kuairand": {
        "tabs": _option(
            str,
            "0,1,2,4,6",
            "tabs of the app, from 0 to 14, that are the scenarios; rows of other tabs are left "
            "out",
        ),
        "label": _option(
            str,
            "is_click",
            "column of the first label, by which models are judged, such as long_view",
        ),
    },
    "amazon": {
        "categories": _option(
            str,
            "",
            "product categories that are the scenarios, such as Beauty,Toys_and_Games "
            "(default: all in the folder)",
        ),
        "above": _option(float, 3.0, "a review is positive if its stars (1 to 5) exceed this"),
    },
    "aliccp": {
        "label": _option(
            Literal["click", "purchase"], "click", "first label, by which models are judged"
        )
    },
    "tables": {
        "scenario_column": _option(str, "scenario", "column of the interactions with the scenario"),
        "label": _option(str, "label", "column of the interactions to predict, 0 or 1"),
        "mapping": _option(
            Path | None,
            None,
            "YAML file that names scenarios, features and texts (default: RAW/tables.yaml, if it "
            "exists)",
            parser=to_path,
        ),
        "versions": _option(
            str,
            "",
            "versions of Delta tables or snapshots of Iceberg tables, such as "
            "interactions=12,users=3 (default: the latest)",
        ),
    },
}
"""Options of one source only, under the names of its reader."""

WORKERS: dict[str, Option] = {
    "engine": _option(
        Literal["polars", "processes", "ray", "ranks"],
        "polars",
        "where to convert: in this process, in several processes of this machine, on Ray (the "
        "extra ray), or on the ranks of a job, as `msrec launch convert` does; the dataset is the "
        "same",
    ),
    "workers": _option(
        int | None, None, "number of workers on this machine (default: one for each core)"
    ),
    "address": _option(
        str | None,
        None,
        "address of a Ray cluster, such as 10.0.0.1:6379 (default: Ray starts on this machine)",
    ),
    "part_rows": _option(
        int | None,
        None,
        "rows that a worker converts at a time, in about 400 bytes of memory each "
        "(default: 1048576)",
    ),
    "work": _option(
        Path | None,
        None,
        "folder for the parts, the same on all machines, from which a conversion that was stopped "
        "goes on (default: .OUT.parts next to OUT; needed if OUT is s3://...)",
        parser=local_path,
    ),
}
"""Options of plain tables that make the workers, under the names of `workers_by_option`."""

LISTS: dict[str, Callable[[str], Any]] = {"tabs": int, "categories": str, "versions": str}
"""Options that hold several values, separated by commas."""


def _command(source: str) -> Callable[..., None]:
    """Returns a function whose signature typer can read, made of the tables above."""

    def command(**options: Any) -> None:
        if options.get("engine") == "ranks" and int(os.environ.get("RANK", 0)) > 0:
            _work_for_rank_0()
            return
        from msrec.tools.convert import convert

        convert(source, **_settings(source, options))

    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=annotation,
            default=inspect.Parameter.empty if default is ... else default,
        )
        for name, (annotation, default) in {
            **SHARED,
            **OWN.get(source, {}),
            **(WORKERS if source == "tables" else {}),
        }.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__doc__ = ABOUT[source]
    return command


def _settings(source: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `tools.convert.convert`, made of the options of a command."""
    from msrec.tools.convert import (
        split_choice,
        tables_by_option,
        versions_by_option,
        workers_by_option,
    )

    others = _split_lists(options)
    choice = split_choice(source, **{name: others.pop(name) for name in SPLIT})
    names = ("hash", "managed", "min_rows")
    table_kinds = tables_by_option(**{name: others.pop(name) for name in names})
    in_parts = {name: others.pop(name) for name in WORKERS if name in others}
    if source == "tables":
        others["versions"] = versions_by_option(others["versions"])
    workers = workers_by_option(**in_parts)
    return {"choice": choice, "table_kinds": table_kinds, "workers": workers, **others}


def _work_for_rank_0() -> None:
    os.environ["POLARS_MAX_THREADS"] = "1"  # read when polars is imported; each core has a rank
    from msrec.data.engines.rank_workers import work

    work()


def words_of(options: Sequence[str]) -> list[str]:
    """Returns `key=value` options of `msrec launch convert` as words of `msrec convert tables`.

    Raises:
        ValueError: an option is unknown, or has a value that the command would refuse.

    Example:
        >>> words_of(["split=time", "fractions=0.9,0,0.1", "hash=user_id=1000", "histories=true"])
        ['--split=time', '--fractions', '0.9', '0', '0.1', '--hash=user_id=1000', '--histories']
    """
    from msrec.launch.cluster.job_specs import option_pairs

    known = {**SHARED, **OWN["tables"], **WORKERS}
    for name in ("raw", "out", "engine", "workers", "address"):
        known.pop(name)
    words = []
    for key, value in option_pairs(options, known):
        flag = f"--{key.replace('_', '-')}"
        kind = get_args(known[key][0])[0]
        if kind is bool:
            if value not in ("true", "false"):
                raise ValueError(f"{key} must be true or false; got {value!r}.")
            words += [flag] if value == "true" else []
        elif get_origin(kind) is tuple:
            words += [flag, *value.split(",")]
        else:
            words.append(f"{flag}={value}")
    _check_words(words)
    return words


def _check_words(words: Sequence[str]) -> None:
    """Parses words of `msrec convert tables` before a job is submitted that would refuse them."""
    command: Any = get_command(convert_app)
    try:
        context = command.commands["tables"].make_context(
            "tables", ["RAW", "OUT", "--engine=ranks", *words]
        )
    except TyperException as error:
        raise ValueError(error.format_message().replace("Value error, ", "")) from None
    _settings("tables", context.params)


def _split_lists(options: Mapping[str, Any]) -> dict[str, Any]:
    lists = {n: comma_list(n, options[n], kind) for n, kind in LISTS.items() if n in options}
    return {**options, **lists}


for _source in ABOUT:
    convert_app.command(_source)(_command(_source))
