"""Model folders: finding one, seeing what it lacks before anything is loaded, and telling two of them apart."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .records import load_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")  # no pickled weights, no code
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_INDEX = "model.safetensors.index.json"


def find_model(name: str, flag: str = "--model") -> Path:
    """The folder of a model that is given by path, or by its name on the hub (fetched, or found in its cache).

    Raises:
        UserError: there is none, or it lacks config, tokenizer or safetensors weights; what is missing is named.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.exists() or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
            raise UserError(f"{flag} {name} is no folder; give a Hugging Face model folder or a hub name")
        folder = _fetch(name, flag)
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{flag} {name} is a LoRA adapter, not a model; merge it into its base model first")
    if not (folder / "config.json").is_file():
        raise UserError(f"{flag} {name} is no model folder: config.json is missing")
    if "auto_map" in read_config(folder):
        raise UserError(f"{flag} {name} brings code of its own (auto_map in config.json), which is never run here")
    weight_shapes(folder, flag)
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        raise UserError(f"{flag} {name} has no tokenizer (tokenizer.json); copy that of the model it was trained from")
    return folder


def _fetch(name: str, flag: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except Exception as error:  # offline, unknown, gated: the hub's client has a dozen kinds
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(
            f"{flag} {name} is neither a folder nor a model that the hub gave ({type(error).__name__}: {reason}); "
            "check the name and the network, or give a local folder"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` as it stands, without transformers.

    Raises:
        UserError: it is no JSON object.
    """
    try:
        config = load_json((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder}/config.json is not JSON ({error}); copy the model again") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder}/config.json is not a JSON object; copy the model again")
    return config


def weight_shapes(folder: Path, flag: str = "--model") -> dict[str, list[int]]:
    """The names and shapes of all weights, from the files' headers.

    Raises:
        UserError: there are no safetensors weights, a shard is missing, or a file is cut short.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if (folder / _INDEX).is_file():
        shards = set(load_json((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        if lost := sorted(shards - {file.name for file in files}):
            raise UserError(f"{flag} {folder} lacks {lost[0]}, which its index names; copy the model again")
    if not files:
        pickled = next(folder.glob("*.bin"), None)
        hint = f"{pickled.name} is a pickle, which is never read; save it as safetensors" if pickled else None
        raise UserError(f"{flag} {folder} holds no safetensors weights; {hint or 'was its training cut short?'}")
    shapes: dict[str, list[int]] = {}
    for file in files:
        try:
            with safe_open(file, framework="np") as weights:
                names = weights.keys()
                shapes |= {name: weights.get_slice(name).get_shape() for name in names}
        except SafetensorError as error:
            raise UserError(f"{file} is broken or cut short ({error}); copy the model again") from error
    return shapes


def context_length(folder: Path) -> int | None:
    """The most tokens that a model can read, as its config has it; None where it does not say."""
    config = read_config(folder)
    found = (config.get(key) for key in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return min((value for value in found if isinstance(value, int)), default=None)


def check_context(folder: Path, max_len: int, flag: str = "--max_len") -> None:
    """No more tokens than the model has positions.

    Raises:
        UserError: ``max_len`` is larger than the model's context.
    """
    context = context_length(folder)
    if context is not None and max_len > context:
        raise UserError(f"{flag} {max_len} is more than the {context} positions of {folder}; lower it")


def check_ids(folder: Path, ids: Iterable[Iterable[int]], flag: str = "--model") -> None:
    """No token id beyond the model's vocabulary.

    Raises:
        UserError: the tokenizer is another model's.
    """
    size = read_config(folder).get("vocab_size")
    highest = max((max(row, default=0) for row in ids), default=0)
    if isinstance(size, int) and highest >= size:
        raise UserError(
            f"{flag} {folder} has a tokenizer that gives id {highest}, beyond the model's vocabulary of {size}; "
            "copy the tokenizer of the model it was trained from"
        )


def identity(folder: Path) -> str:
    """A hash that tells this model from another: the small files' bytes, and names, sizes and times of the weights.

    Weights that were written anew count as another model, even where their bytes are the same.
    """
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _FILES for path in folder.glob(pattern)):
        status = path.stat()
        digest.update(f"{path.name}\0{status.st_size}\0".encode())
        if path.suffix == ".safetensors":
            digest.update(f"{status.st_mtime_ns}\0".encode())
        else:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def read_tokenizer(folder: Path, flag: str) -> PreTrainedTokenizerBase:
    """The folder's tokenizer as it stands.

    Raises:
        UserError: it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{flag} {folder} has a tokenizer that cannot be read ({reason}); copy the model again"
        ) from error


def load_tokenizer(folder: Path, flag: str = "--model") -> PreTrainedTokenizerBase:
    """The folder's tokenizer; without a padding token, EOS pads, as in OpenRLHF.

    Raises:
        UserError: it cannot be read, or knows no EOS.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    tokenizer = read_tokenizer(folder, flag)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{flag} {folder} has a tokenizer without an EOS token; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
