"""Model folders: finding one, seeing what it lacks before anything is loaded, and telling two of them apart."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli.errors import UserError, brief
from ..files.records import read_object, sha256_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")  # no pickled weights, no code
_MODEL_FILES = ("*.safetensors", "*.bin", "*.gguf", "config.json", "adapter_config.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_INDEX = "model.safetensors.index.json"
_AGAIN = "copy the model again"


def find_model(name: str, flag: str = "--model") -> Path:
    """The folder of a model that is given by path, or by its name on the hub (fetched, or found in its cache).

    Raises:
        UserError: there is none, or it lacks config, tokenizer or safetensors weights; what is missing is named.
    """
    folder = Path(name).expanduser()
    if not folder.exists() and re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        folder = _fetch(name, flag)
    check_kind(folder, f"{flag} {name}")
    if "auto_map" in read_config(folder):
        raise UserError(f"{flag} {name} brings code of its own (auto_map in config.json), which is never run here")
    weight_shapes(folder, flag)
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        raise UserError(f"{flag} {name} has no tokenizer (tokenizer.json); copy that of the model it was trained from")
    return folder


def check_kind(folder: Path, named: str) -> None:
    """A folder is a model's. Raises UserError, which begins with ``named``, if it is not, or if it is an adapter's."""
    if not folder.is_dir():
        raise UserError(f"{named} is not a folder; give a Hugging Face model folder or a hub name")
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{named} is a LoRA adapter, not a model; merge it into its base model first")
    if not (folder / "config.json").is_file():
        raise UserError(f"{named} is not a model folder: config.json is missing")


def find_same(name: str, copy_of: str, flag: str = "--model") -> Path:
    """`find_model` in a worker, which may be on another machine than the command.

    Args:
        name, flag: as in `find_model`.
        copy_of: the `identity` without times that the command has found.

    Raises:
        UserError: as `find_model`, or it is another model there; the machine is named.
    """
    here = f"on the machine {platform.node()}"
    try:
        folder = find_model(name, flag)
    except UserError as error:
        raise UserError(f"{here}: {error}") from error
    if identity(folder, times=False) != copy_of:
        raise UserError(f"{here}: {flag} {name} is another model than on the command's machine; copy it there again")
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
    """``config.json`` as it is, without transformers. Raises UserError if it is not a JSON object."""
    return read_object(folder / "config.json", _AGAIN)


def check_generation_config(folder: Path, flag: str, saved: bool = False) -> None:
    """``generation_config.json``, of which only the tokens that end a text are used, can be read.

    Args:
        folder: the model's.
        flag: how the user gave it, for messages.
        saved: the model will be saved again, and this file with it.

    Raises:
        UserError: it is not a JSON object, names no token ids, or transformers refuses to save it.
    """
    if not (folder / "generation_config.json").is_file():
        return
    found = read_object(folder / "generation_config.json", _AGAIN)
    end = found.get("eos_token_id")
    if end is not None and not all(type(one) is int for one in (end if isinstance(end, list) else [end])):
        raise UserError(
            f"{flag} {folder} has an eos_token_id {end!r} in its generation_config.json, which is not a token id; "
            "copy the model again"
        )
    if not saved:
        return
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_dict(found).validate(strict=True)
    except Exception as error:  # of values that contradict each other, or are not numbers
        raise UserError(
            f"{flag} {folder} has a generation_config.json that transformers refuses to save again ({brief(error)}); "
            "remove those values from the file"
        ) from error


def weight_files(folder: Path, flag: str = "--model") -> list[Path]:
    """The safetensors files that transformers reads of a folder, which may have others beside them.
    Raises UserError if there are none, one is missing, or the index of several is broken."""
    files = sorted(folder.glob("*.safetensors"))
    if (folder / _INDEX).is_file():
        places = read_object(folder / _INDEX, _AGAIN).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise UserError(f"{folder / _INDEX} has no weight_map of weights to files; copy the model again")
        shards = set(places.values())
        if lost := sorted(shards - {file.name for file in files}):
            raise UserError(f"{flag} {folder} lacks {lost[0]}, which its index names; copy the model again")
        files = [folder / name for name in sorted(shards)]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not files:
        pickled = next(folder.glob("*.bin"), None)
        hint = f"{pickled.name} is a pickle, which is never read; save it as safetensors" if pickled else None
        raise UserError(f"{flag} {folder} has no safetensors weights; {hint or 'was its training cut short?'}")
    return files


def weight_shapes(folder: Path, flag: str = "--model") -> dict[str, list[int]]:
    """The names and shapes of all weights, from the files' headers.
    Raises UserError as `weight_files` does, or if a file is cut short."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    for file in weight_files(folder, flag):
        try:
            with safe_open(file, framework="np") as weights:
                names = weights.keys()
                shapes |= {name: weights.get_slice(name).get_shape() for name in names}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is broken or cut short ({error}); copy the model again") from error
    return shapes


def context_length(folder: Path) -> int | None:
    """The most tokens that a model can read, as its config has it; None where it does not say."""
    config = read_config(folder)
    found = (config.get(key) for key in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return min((value for value in found if isinstance(value, int)), default=None)


def check_context(folder: Path, max_len: int, flag: str = "--max_len") -> None:
    """No more tokens than the model has positions.
    Raises UserError if ``max_len`` is larger than the model's context."""
    context = context_length(folder)
    if context is not None and max_len > context:
        raise UserError(f"{flag} {max_len} is more than the {context} positions of {folder}; lower it")


def length_limit(folder: Path, asked: int, flag: str, model_flag: str = "--model") -> int:
    """How many tokens a model reads: as many as ``flag`` asks for, or all that it has positions for (0).
    Raises UserError if it has fewer positions, or its config does not say how many."""
    check_context(folder, asked, flag)
    if not (found := asked or context_length(folder)):
        raise UserError(f"{model_flag} {folder} does not say how many positions it has; give {flag}")
    return found


def check_ids(folder: Path, ids: Iterable[Iterable[int]], flag: str = "--model") -> None:
    """No token id beyond the model's vocabulary. Raises UserError if the tokenizer is another model's."""
    size = read_config(folder).get("vocab_size")
    highest = max((max(row, default=0) for row in ids), default=0)
    if isinstance(size, int) and highest >= size:
        raise UserError(
            f"{flag} {folder} has a tokenizer that gives id {highest}, beyond the model's vocabulary of {size}; "
            "copy the tokenizer of the model it was trained from"
        )


def identity(folder: Path, times: bool = True) -> str:
    """A hash that tells this model from another: the small files' bytes, and names, sizes and times of the weights.

    It takes no time, so every command that resumes uses it. Weights that were written anew, or copied, count as another
    model, even where their bytes are the same; use `content_digest` where they must not. Without ``times``, a copy is
    the same model, as it must be for a worker on another machine.
    """
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _FILES for path in folder.glob(pattern)):
        status = path.stat()
        digest.update(f"{path.name}\0{status.st_size}\0".encode())
        if path.suffix == ".safetensors":
            digest.update(f"{status.st_mtime_ns if times else 0}\0".encode())
        else:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def content_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a model's weight and config files, without its tokenizer.

    It reads all weights. Equal copies of a model have one digest, so it names what is kept beyond a run and shared
    between machines; use `identity` where a run only has to see that its model is still the same.
    """
    files = sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)})
    return hashlib.sha256("".join(f"{path.name} {sha256_file(path)}\n" for path in files).encode()).hexdigest()


def read_tokenizer(folder: Path, flag: str) -> PreTrainedTokenizerBase:
    """The folder's tokenizer as it is. Raises UserError if it cannot be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare exceptions
        model_config(folder, flag)  # transformers reads it, too, and may have stopped there
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{flag} {folder} has a tokenizer that cannot be read ({reason}); copy the model again"
        ) from error


def load_tokenizer(folder: Path, flag: str = "--model") -> PreTrainedTokenizerBase:
    """The folder's tokenizer; without a padding token, EOS pads, as in OpenRLHF.
    Raises UserError if it cannot be read, or knows no EOS."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    tokenizer = read_tokenizer(folder, flag)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{flag} {folder} has a tokenizer without an EOS token; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def model_config(folder: Path, flag: str) -> Any:
    """A folder's config as transformers reads it.
    Raises UserError if it cannot be read, or its model type is unknown."""
    from transformers import CONFIG_MAPPING, AutoConfig

    kind = read_config(folder).get("model_type")
    if kind not in CONFIG_MAPPING:
        raise UserError(
            f"{flag} {folder} has the model_type {kind!r} in its config.json, which the installed transformers does "
            "not know; correct it, or install a newer transformers"
        )
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # each config class checks its values in its own way
        raise UserError(
            f"{flag} {folder} has a config.json that cannot be read ({brief(error)}); copy the model again"
        ) from error
