"""A judge whose model this process holds: in transformers for log-probabilities, in vLLM for what it writes (or, where
there is no vLLM, in transformers, too)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..cli.errors import UserError
from ..litbench.prompts import LABELS, marked
from ..models.chats import ChatError, render_with
from ..models.texts import encode
from .template import Template, read_verdict

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Style = Literal["chat", "marker", "plain"]
Backend = Literal["auto", "vllm", "hf"]

#: a response is cut to no fewer tokens
_LEAST = 16
RETRY_TEMPERATURE = 0.7  # at 0 the same would be written again


class Two(NamedTuple):
    """Two responses to a prompt, as they are shown; ``name`` is for messages."""

    name: str
    prompt: str
    first: str
    second: str


class Answer(NamedTuple):
    """What the judge says of a pair: a lean (see `tournament`) with ``first`` as A, and one with ``second``."""

    leans: tuple[float | None, float | None]
    #: what it wrote, if it wrote
    texts: tuple[str, str] = ("", "")
    #: calls that it took, those for answers that could not be read included
    calls: int = 2
    #: whether a response was cut to fit
    cut: bool = False
    #: whether a letter was too unlikely to be told, so that the lean is a bound
    bounded: bool = False


@dataclass
class Reader:
    """Makes token ids of pairs.

    Args:
        tokenizer: the judge's.
        template: what it is asked.
        style: a message in its chat template, LitBench's marker line, or the template alone.
        max_len: tokens of a question and its answer.
        room: of them for the answer.

    Raises:
        UserError: ``chat``, and it has no chat template.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    style: Style
    max_len: int
    room: int

    def __post_init__(self) -> None:
        if self.style == "chat" and not self.tokenizer.chat_template:
            raise UserError(
                "the judge's tokenizer has no chat template; give --judge.style marker for what litbench_genrm.sh made "
                "with STYLE=marker, or --judge.style plain with a --judge.template that holds all that it reads"
            )

    def render(self, two: Two, swapped: bool = False) -> str:
        """The text of a question, up to where the answer begins."""
        a, b = (two.second, two.first) if swapped else (two.first, two.second)
        text = self.template.fill(a, b, two.prompt)
        if self.style == "plain":
            return text
        if self.style == "marker":
            return marked(text) + "\n"
        try:
            return render_with(self.tokenizer)([{"role": "user", "content": text}], True)
        except ChatError as error:
            raise UserError(f"the question about {two.name}{error}; give another --judge.style") from error

    def read(self, pairs: Sequence[Two], behind: str) -> tuple[list[list[int]], list[bool]]:
        """Token ids of the questions and of what is ``behind`` them: both orders of a pair follow each other. And
        whether a pair is cut: responses are, to the same length in both orders, and nothing else of a question.
        Raises UserError if what is not a response leaves no room; the pair is named."""
        ids = self._ids(pairs, behind)
        cut = [max(map(len, ids[2 * i : 2 * i + 2])) > self.max_len - self.room for i in range(len(pairs))]
        for i, two in enumerate(pairs):
            if cut[i]:
                ids[2 * i : 2 * i + 2] = self._fit(two, behind, ids[2 * i : 2 * i + 2])
        return ids, cut

    def _ids(self, pairs: Sequence[Two], behind: str) -> list[list[int]]:
        texts = [self.render(two, swapped) + behind for two in pairs for swapped in (False, True)]
        return encode(self.tokenizer, texts)

    def _fit(self, two: Two, behind: str, ids: list[list[int]]) -> list[list[int]]:
        responses = encode(self.tokenizer, [two.first, two.second])
        most = max(map(len, responses))
        shown = two
        while (over := max(map(len, ids)) - (self.max_len - self.room)) > 0:
            lengths = sorted(min(len(one), most) for one in responses)
            # of two long ones each loses half, of a long and a short one the long one all
            most = max(lengths[1] - over, (sum(lengths) - over) // 2)
            if most < _LEAST:
                raise UserError(
                    f"the question about {two.name} leaves no room for the responses in the judge's {self.max_len} "
                    "tokens; raise --judge.max_len, drop such prompts, or take a judge with more positions"
                )
            first, second = (str(self.tokenizer.decode(one[:most])) for one in responses)
            shown = Two(two.name, two.prompt, first.strip(), second.strip())
            ids = self._ids([shown], behind)
        return ids


class ByLogprob:
    """A judge that is asked which letter it would write, by one forward pass for each question.

    Args:
        reader: what it reads.
        folder: its model.
        opening: what its answer begins with, before the letter.
        dtype, attention: of the model.
        batch_tokens: padded tokens in a batch.

    Raises:
        UserError: the letters behind the opening are not a token each, or the model cannot be read.
    """

    writes = False

    def __init__(
        self, reader: Reader, folder: Path, opening: str, dtype: str, attention: str, batch_tokens: int
    ) -> None:
        from ..models.logprobs import load_model

        self._reader, self._opening, self._batch_tokens = reader, opening, batch_tokens
        probe = reader.render(Two("a sample", "prompt", "one", "other"))
        a, b = encode(reader.tokenizer, [probe + opening + label for label in LABELS])
        if a[:-1] != b[:-1] or a[-1] == b[-1]:
            raise UserError(
                f"the judge's tokenizer does not write A and B behind --judge.opening {opening!r} with one token each; "
                "change the opening, or give --judge.verdict text"
            )
        self._letters = (a[-1], b[-1])
        self._model = load_model(folder, dtype, attention, "--judge.model")

    def compare(self, pairs: Sequence[Two]) -> list[Answer]:
        """The leans of all pairs, in one call of the model's, in nats."""
        ids, cut = self._reader.read(pairs, self._opening + LABELS[0])
        pad_id = int(self._reader.tokenizer.pad_token_id)  # type: ignore[arg-type]
        found = letter_margins(self._model, [row[:-1] for row in ids], self._letters, self._batch_tokens, pad_id)
        return [Answer((found[2 * i], found[2 * i + 1]), cut=cut[i]) for i in range(len(pairs))]


def letter_margins(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], letters: tuple[int, int], batch_tokens: int, pad_id: int
) -> list[float]:
    """``log p(letters[0]) - log p(letters[1])`` behind each row of token ids, in nats.

    The two logits are computed in float32 from the last hidden state: bf16 ones of size 16 are 1/8 apart. What rows
    begin with (a prompt and its first response) is computed once.
    """
    import torch
    from torch.nn.functional import linear

    from ..models.modules import scored_positions
    from ..models.prompt_once import for_model

    head: Any = model.get_output_embeddings()
    tokens = torch.tensor(letters, device=head.weight.device)

    def two_logits(_: Any, inputs: Any, __: Any) -> Tensor:
        bias = None if head.bias is None else head.bias[tokens].float()
        return linear(inputs[0].float(), head.weight[tokens].float(), bias)

    def forward(ids: Tensor, mask: Tensor, members: list[int]) -> list[float]:
        last = torch.zeros_like(mask, dtype=torch.bool)
        last[torch.arange(len(ids)), mask.sum(1) - 1] = True
        with scored_positions(head, last):
            hook = head.register_forward_hook(two_logits)
            try:
                logits = model(ids, attention_mask=mask, use_cache=False).logits[0]
            finally:
                hook.remove()
        found: list[float] = (logits[:, 0] - logits[:, 1]).tolist()
        return found

    return for_model(model).map(rows, batch_tokens, forward, pad_id=pad_id)


@dataclass
class ByText:
    """A judge whose written verdict is read.

    Args:
        reader: what it reads.
        folder: its model.
        backend: ``vllm``, ``hf``, or ``auto``: vLLM, where it is installed.
        dtype, attention: of the model.
        memory: the part of a GPU's memory that vLLM may take.
        gpus: of vLLM's engine.
        retries: for an answer without a verdict, sampled at another temperature.
        seed: of these.

    Raises:
        UserError: the model cannot be read.
    """

    reader: Reader
    folder: Path
    backend: Backend
    dtype: str
    attention: str
    memory: float
    gpus: int
    retries: int
    seed: int

    writes = True

    def __post_init__(self) -> None:
        from ..models.logprobs import load_model

        self._vllm = self.backend == "vllm" or (self.backend == "auto" and find_spec("vllm") is not None)
        self._asked = 0
        self._engine: Any = None
        if not self._vllm:
            self._engine = load_model(self.folder, self.dtype, self.attention, "--judge.model")

    def compare(self, pairs: Sequence[Two]) -> list[Answer]:
        """The leans of all pairs, 1 and -1, in one call of the engine's; and one more for each retry."""
        ids, cut = self.reader.read(pairs, "")
        texts = self._write(dict(enumerate(ids)), 0.0)
        leans = [read_verdict(text) for text in texts.values()]
        calls = [1] * len(ids)
        for _ in range(self.retries):
            open_ones = {i: ids[i] for i, lean in enumerate(leans) if lean is None}
            if not open_ones:
                break
            for i, text in self._write(open_ones, RETRY_TEMPERATURE).items():
                texts[i], leans[i] = text, read_verdict(text)
                calls[i] += 1
        return [
            Answer((leans[i], leans[i + 1]), (texts[i], texts[i + 1]), calls[i] + calls[i + 1], cut[i // 2])
            for i in range(0, len(ids), 2)
        ]

    def _write(self, questions: dict[int, list[int]], temperature: float) -> dict[int, str]:
        """Answers to questions, by their numbers."""
        from ..models.engines import load_vllm
        from ..models.pool import Calls, Pool, Work
        from ..models.prompts import units_of
        from ..models.samplers import HfSampler, Prompt, Sampling, VllmSampler

        self._asked += 1
        room, max_len = self.reader.room, self.reader.max_len
        # retries of other batches have other seeds
        sampling = Sampling(1, temperature, 1.0, 0, room, max_len, self.seed + self._asked, self.dtype)
        prompts = [Prompt(str(i), ids) for i, ids in questions.items()]
        if self._vllm and self._engine is None:
            self._engine = load_vllm(
                self.folder, sampling, 256, tensor_parallel_size=self.gpus, gpu_memory_utilization=self.memory,
                flags="--judge.",
            )  # fmt: skip
        if self._vllm:
            work: Work = VllmSampler(self._engine, sampling, len(prompts))
        else:
            work = Calls(HfSampler(self._engine, self.reader.tokenizer, sampling))
        units = {str(n): unit for n, unit in enumerate(units_of(prompts, (), sampling, "vllm" if self._vllm else "hf"))}
        found: dict[str, str] = {}
        for key, answers in Pool().run(lambda: work, units.items()):
            found |= {prompt.id: one.texts[0] for prompt, one in zip(units[key], answers, strict=True)}
        return {i: found[str(i)] for i in questions}
