"""Config of a training: of a file, or of the run that it starts from."""

import json
from collections.abc import Sequence
from pathlib import Path

from msrec.data.io.paths import to_path
from msrec.data.io.yaml_files import parse_yaml
from msrec.launch.config.run_config import RunConfig, load_config, with_overrides
from msrec.launch.trained_run import find_run, load_run_config

NEXT_DAY = ("init_optimizer=true", "strict=grown", "trainer.progressive=1", "plan=null")
"""Options of a run that takes the config of the run `init_from`; overrides replace them."""


def training_config(
    config: Path | None, overrides: Sequence[str] = (), data: str | None = None
) -> RunConfig:
    """Returns the config of a training.

    Without a file, the run goes on from the run `init_from` with other rows: it has the config of
    that run and `NEXT_DAY`. Its folder is next to that run and is named after the dataset.

    Args:
        config: YAML file; None takes the config of the run that the override `init_from` names.
        overrides: `key.sub=value`.
        data: dataset folder to train on, in place of the config's.

    Raises:
        FileNotFoundError: there is no such file or run.
        ValueError: as `load_config`; or without a file, `init_from` or the dataset is missing.
    """
    given = {key: text for key, _, text in (each.partition("=") for each in overrides)}
    if data is not None and "dataset" in given:
        raise ValueError(f"--data={data} and dataset={given['dataset']} must not both be given.")
    if data is not None:
        overrides = [*overrides, f"dataset={json.dumps(data)}"]
        given["dataset"] = data
    if config is not None:
        return load_config(config, overrides)
    if "init_from" not in given or "dataset" not in given:
        raise ValueError(
            "msrec train must have a CONFIG file; or --data DATASET init_from=RUN, to go on from a "
            "run with its config."
        )
    source = to_path(parse_yaml(given["init_from"], "init_from"))
    folder = find_run(source).folder
    own = {"run_id": to_path(str(parse_yaml(given["dataset"], "dataset"))).name}
    if isinstance(source, Path):  # of a copy the folder around it is not one of runs
        own["run_root"] = str(folder.parent)
    defaults = [*NEXT_DAY, *(f"{key}={json.dumps(value)}" for key, value in own.items())]
    return with_overrides(load_run_config(folder), [*defaults, *overrides])
