"""Config of a run: a frozen `RunConfig`, read from a short YAML file and overrides."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from msrec.data.io.outputs import (
    FileKind,
    FolderKind,
    check_apart,
    check_output,
    contains,
    is_within,
)
from msrec.data.io.paths import AnyPath, refuse_secrets
from msrec.data.io.validation import FolderPath, LocalPath, Seed, StrictModel
from msrec.data.io.yaml_files import MAX_DEPTH, parse_yaml, read_yaml, write_yaml
from msrec.data.loading.quarantine import Policy
from msrec.launch.config.backbone_section import BACKBONE_OPTIONS, BackboneConfig
from msrec.launch.config.llm_section import LLMConfig
from msrec.launch.config.model_sections import (
    EmbeddingsConfig,
    HistoryConfig,
    InteractionConfig,
    InterestConfig,
    LLMFeatureConfig,
    MetaConfig,
    SequenceConfig,
)
from msrec.launch.config.training_sections import ObjectiveConfig, OptimizerConfig, TrainerConfig
from msrec.model.backbones import BACKBONES

Device = Literal["auto", "cpu", "cuda"]
"""Device of the ranks, see `msrec.launch.devices.rank_device`."""
DEVICES: tuple[Device, ...] = get_args(Device)
DEFAULT_BACKBONE = "shared_bottom"
CONFIG_FILE = "config.yaml"
"""File of a run folder with the resolved config."""
SAVED_CONFIG = FileKind("the config of a run", contains("run_id:"))
NEW_RUN = FolderKind(
    "the folder of a run",
    None,
    (
        *("*.yaml", "submitted.json", "pipeline.json", "failed_step.json", ".*"),
        *("init_from.json", "logs/**", "jobs/**", "ranks/**", "quarantine/**"),
    ),
)
"""What a run folder may hold before its config; people keep the files of their configs there."""
Strictness = bool | Literal["grown"]


class RunConfig(StrictModel):
    """All options of a run."""

    dataset: FolderPath
    """Dataset folder, local or remote; required."""
    run_root: LocalPath = Path("runs")
    """Folder of all runs."""
    run_id: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run's folder in `run_root`. Training again with the same name resumes the run."""
    seed: Seed = 0
    """Seed of the initial weights, the order of the rows and dropout."""
    device: Device = "auto"
    """Device of the ranks in training and encoding: `cpu`, `cuda` (one GPU per rank), or `auto`,
    which takes the GPUs if torch and the build of fbgemm can use them."""
    faults: Policy = "fail"
    """Treatment of rows that break the schema: `fail` on the first, `skip` them, or `quarantine`
    them, which also records file, row and reason in the run folder. The results count them."""
    plan: LocalPath | None = None
    """Sharding plan to use; null computes one."""
    init_from: FolderPath | None = None
    """Run folder (for its best checkpoint) or checkpoint with the initial weights of a new run,
    local or remote. A run that resumes ignores it."""
    init_optimizer: bool = False
    """Also take the optimizer state of `init_from`, as far as its weights are taken; new rows of a
    table start at zero. False starts with a new optimizer."""
    strict: Strictness = True
    """Require that `init_from` has the tensors of this model and no others. `grown` allows tables
    to have more rows, whose old values must have kept their rows; false loads what fits."""
    scale: float = Field(1.0, gt=0, le=1)
    """Share of the rows of each table to keep, with ids taken modulo the new size, to try a model
    that does not fit into memory. Tables of up to 1,000 rows keep their size."""
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    """Embedding tables."""
    interaction: InteractionConfig = InteractionConfig()
    """Combination of vectors and dense features."""
    backbone: BackboneConfig = BACKBONE_OPTIONS[DEFAULT_BACKBONE]()
    """`name` and the options of that backbone; `msrec zoo` lists both."""
    meta: MetaConfig = MetaConfig()
    """Meta networks."""
    llm_feature: LLMFeatureConfig = LLMFeatureConfig()
    """LLM vectors as plain features."""
    llm: LLMConfig = LLMConfig()
    """LLM, prompts and knowledge store."""
    history: HistoryConfig = HistoryConfig()
    """Behaviour histories as features."""
    interest: InterestConfig = InterestConfig()
    """Match of item vectors with ordered histories."""
    sequence: SequenceConfig = SequenceConfig()
    """Ordered histories."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Loss."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer outside the tables, and all schedules."""
    trainer: TrainerConfig = TrainerConfig()
    """Training loop."""

    @model_validator(mode="after")
    def _check_progressive(self) -> Self:
        if self.trainer.progressive and self.init_from is None:
            raise ValueError(
                f"trainer.progressive must be 0 without init_from, whose model it evaluates; got "
                f"{self.trainer.progressive:g}"
            )
        return self

    @property
    def knowledge_levels(self) -> list[str]:
        """Levels of the knowledge store that the run reads: of user, item and scenario."""
        meta, feature = self.meta, self.llm_feature
        read = {"none": (), "match": ("user", "item")}.get(feature.kind, tuple(feature.of))
        if self.interest.enabled and self.interest.scenario:
            read = (*read, "scenario")
        levels = ("user", "item", "scenario")
        return [name for name in levels if getattr(meta, name) or name in read]

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return self.run_root / self.run_id

    @property
    def remote_run_dir(self) -> AnyPath | None:
        """Folder of this run in an object store; None if `trainer.copy_to` names none."""
        copy_to = self.trainer.copy_to
        return None if copy_to is None else copy_to / self.run_id


def load_config(path: Path | str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a YAML file and applies `key.sub=value` overrides.

    Values are YAML: `backbone.tower_dims=[64, 32]`, `meta.user=true`. Setting `backbone.name` to
    another backbone drops the backbone options of the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not YAML, a key is unknown (the error names the nearest known ones)
            or a value is out of its range.
    """
    if path is None:
        return _validated({}, overrides, "the command line")
    if not Path(path).is_file():
        raise FileNotFoundError(f"the config file {path} must exist; it does not.")
    tree = read_yaml(Path(path))
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold keys and values; it holds {type(tree).__name__}.")
    return _validated(tree, overrides, str(path))


def with_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Returns a copy with some values changed, see `load_config`."""
    return _validated(config.model_dump(mode="json"), overrides, "the config")


def save_config(config: RunConfig, path: Path) -> None:
    """Writes the resolved config; training from this file repeats the run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_yaml(path, config.model_dump(mode="json"))


def check_run_folder(config: RunConfig) -> None:
    """Refuses a run folder with files of others, so that training overwrites none of them.

    Raises:
        ValueError: names the folder and the file.
    """
    check_apart(config.run_dir, [config.dataset])
    source = config.init_from
    for own in (config.run_dir, config.remote_run_dir):
        if source is not None and own is not None and is_within(source, own):
            raise ValueError(
                f"init_from={source} must be another run than the one to train, {own}. Choose "
                "another run_id."
            )
    if (config.run_dir / CONFIG_FILE).is_file():
        check_output(config.run_dir / CONFIG_FILE, SAVED_CONFIG)
    else:
        check_output(config.run_dir, NEW_RUN)


def _validated(tree: dict[str, Any], overrides: Sequence[str], source: str) -> RunConfig:
    for override in overrides:
        key, equals, text = override.partition("=")
        refuse_secrets("an override", override)
        if not equals or not key:
            raise ValueError(f"an override must look like key.sub=value; got {override!r}.")
        keys = key.split(".")
        if len(keys) > MAX_DEPTH:
            raise ValueError(f"an override must have a key of the config; got {key!r:.80}.")
        _set_value(tree, keys, parse_yaml(text, f"{key}: the value"))
    if isinstance(tree.get("backbone"), dict):
        tree["backbone"].setdefault("name", DEFAULT_BACKBONE)
    refuse_secrets(source, tree)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        key, sentence = _explanation(error)
        raise ValueError(f"{_origin(key, source, overrides)}: {sentence}.") from None


def _origin(key: str, source: str, overrides: Sequence[str]) -> str:
    """Returns where the value of a key, or of a section, comes from."""
    by_key = {override.partition("=")[0]: override[:100] for override in overrides}
    for name, override in by_key.items():
        if f"{key}.".startswith(f"{name}."):
            return f"the override {override}"
    changes = [override for name, override in by_key.items() if name.startswith(f"{key}.")]
    return f"{source} with {', '.join(changes)}" if changes else source


def _set_value(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    backbone = tree.get("backbone")
    if (
        keys == ["backbone", "name"]
        and isinstance(backbone, dict)
        and backbone.get("name") != value
    ):
        tree["backbone"] = {}
    for key in keys[:-1]:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[keys[-1]] = value


def _explanation(error: ValidationError) -> tuple[str, str]:
    """Returns the key of the most useful error, and it as `key must ...; got ...`, unended."""
    # An unknown key explains a missing one, so it comes first.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    location = [str(part) for part in first["loc"]]
    # Pydantic puts the tag of the union into the location: backbone.mmoe.dropout.
    is_tag = len(location) > 1 and location[1] in BACKBONES
    key = ".".join(location[:1] + location[2:] if is_tag else location)
    match first["type"]:
        case "extra_forbidden":
            known = _known_keys(location[:-1])
            near = difflib.get_close_matches(location[-1], known, n=3) or known
            return key, f"{key} is not a known key; near it are {', '.join(near)}"
        case "union_tag_invalid":
            tag = first["ctx"]["tag"]
            near = difflib.get_close_matches(tag, BACKBONES) or list(BACKBONES)
            must = f"{key}.name must be a model of `msrec zoo`"
            return f"{key}.name", f"{must}; got {tag!r}, near it are {', '.join(near)}"
        case "value_error":
            sentence = str(first["ctx"]["error"]).rstrip(".")
            return key, f"{key}: {sentence}" if key else sentence
        case "model_type" | "model_attributes_type":
            known = _known_keys(location)
            example = f"{key}.{'name' if 'name' in known else known[0]}"
            return key, f"{key} must hold keys, such as {example}; got {first['input']!r:.100}"
    return key, f"{key}: {first['msg']}; got {first['input']!r:.100}"


def _known_keys(location: list[str]) -> list[str]:
    """Returns the field names of the section at a location, a backbone given by its tag."""
    section: Any = RunConfig
    for part in location:
        if part in BACKBONES:
            section = BACKBONE_OPTIONS[part]
        elif part == "backbone":
            section = BACKBONE_OPTIONS[DEFAULT_BACKBONE]
        else:
            kind = section.model_fields[part].annotation
            section = next(iter(get_args(kind)), kind)  # of `Section | None`
    return sorted(section.model_fields)
