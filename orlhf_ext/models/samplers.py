"""What samples completions: vLLM (its CUDA and its CPU build), or Hugging Face's ``generate``.

Both take prompts as token ids and give completions as they are finished, so that each can be kept at once.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..cli.errors import brief
from .batches import cut_batches
from .pool import Failed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from vllm import LLM, SamplingParams

_MAX_REQUESTS = 1024  # requests that vLLM has at a time: enough to keep it busy, few enough to start at once
_HF_TOKENS = 32768  # padded tokens in a Hugging Face batch


class Prompt(NamedTuple):
    """A prompt to sample for: its record's id, its token ids, and whether their beginning was cut off."""

    id: str
    ids: list[int]
    cut: bool = False


class Completions(NamedTuple):
    """What was sampled for one prompt; token ids end with EOS where the model ended by itself."""

    texts: list[str]
    token_ids: list[list[int]]
    #: "stop" or "length"
    finish_reasons: list[str]
    #: what a logits processor counted meanwhile
    counted: dict[str, int] = {}  # noqa: RUF012


@dataclass(frozen=True)
class Sampling:
    """How to sample; ``top_k`` 0 is off, temperature 0 takes the likeliest token."""

    num_completions: int
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    max_len: int
    seed: int
    dtype: str = "bfloat16"


def derive_seed(*parts: str | int) -> int:
    """63 bits that follow from the parts alone: equal on every machine, and for every order of the prompts."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class VllmSampler:
    """Samples with vLLM, as `Work`: a unit is a list of prompts, and its result the completions of each.

    Every completion has a seed of its own, from ``sampling.seed``, the prompt's id and its number. vLLM promises no
    equal text for other batch shapes all the same: its numerics depend on them.

    Args:
        llm: what `load_vllm` gives.
        sampling: how; prompts have at most ``max_len - max_new_tokens`` ids each.
        requests: completions that will be asked for: no more than these are in hand at a time.
        more: further arguments of `SamplingParams`, such as ``extra_args``.
    """

    def __init__(self, llm: LLM, sampling: Sampling, requests: int, more: Mapping[str, Any] | None = None) -> None:
        self._llm, self._sampling, self._more = llm, sampling, more or {}
        self._waiting: deque[tuple[str, Sequence[Prompt]]] = deque()
        self._units: dict[str, tuple[Sequence[Prompt], dict[tuple[int, int], Any]]] = {}
        self.room = max(1, min(requests, _MAX_REQUESTS) // sampling.num_completions)

    def add(self, key: str, payload: Sequence[Prompt]) -> None:
        """As `Work.add`."""
        self._waiting.append((key, payload))

    def step(self) -> list[tuple[str, list[Completions]]]:
        """As `Work.step`."""
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        engine = self._llm.llm_engine
        try:
            while self._waiting:
                key, prompts = self._waiting.popleft()
                self._units[key] = (prompts, {})
                for place, prompt in enumerate(prompts):
                    for number in range(self._sampling.num_completions):
                        params = self._params(prompt, number)
                        engine.add_request(f"{place}:{number}:{key}", tokens_input(prompt.ids), params)
            outputs = engine.step()
        except EngineDeadError as error:
            reason = "vLLM's engine process died (killed, out of memory, or by an error that it printed before)"
            raise Failed("", reason) from error
        except RuntimeError as error:
            raise Failed("", f"vLLM failed ({brief(error)})") from error
        return [unit for output in outputs for unit in self._finish(output)]

    def _params(self, prompt: Prompt, number: int) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = self._sampling
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_new_tokens,
            seed=derive_seed(sampling.seed, prompt.id, number) if sampling.temperature else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **self._more,
        )

    def _finish(self, output: Any) -> Iterator[tuple[str, list[Completions]]]:
        """Keep a completion; its unit, if that is whole."""
        place, number, key = output.request_id.split(":", 2)
        prompts, found = self._units[key]
        found[int(place), int(number)] = output.outputs[0]
        count = self._sampling.num_completions
        if len(found) < count * len(prompts):
            return
        del self._units[key]
        every = [[found[place, number] for number in range(count)] for place in range(len(prompts))]
        yield (
            key,
            [
                Completions(
                    [one.text for one in done],
                    [list(one.token_ids) for one in done],
                    [str(one.finish_reason) for one in done],
                )
                for done in every
            ],
        )


def hf_batches(prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Prompt]]:
    """What `HfSampler` samples for together: batches follow from all prompts, so that a run that goes on after a kill
    samples what an uninterrupted one would have."""
    lengths = [len(prompt.ids) + sampling.max_new_tokens for prompt in prompts]
    budget = max(1, _HF_TOKENS // sampling.num_completions)
    return [[prompts[i] for i in batch] for batch in cut_batches(lengths, budget)]


class HfSampler:
    """Samples for a batch of prompts with Hugging Face's ``generate``: slow, and the same on every machine that
    transformers knows. Each batch has a seed, which follows from its prompts.

    Args:
        model: on its device.
        tokenizer: of the model.
        sampling: how. Of the model's own generation_config.json, only the tokens that end a text count, as in vLLM.
        processors: makes logits processors for a batch from its attention mask.
        more: further arguments of `GenerationConfig`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        processors: Callable[[Tensor], list[Any]] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        from transformers import GenerationConfig

        self._model, self._tokenizer, self._sampling, self._processors = model, tokenizer, sampling, processors
        self._ends = end_ids(model, tokenizer)
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        self._config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            num_return_sequences=sampling.num_completions,
            eos_token_id=sorted(self._ends),
            pad_token_id=tokenizer.pad_token_id,
            do_sample=bool(sampling.temperature),
            **(drawn if sampling.temperature else {}),
            **(more or {}),
        )
        model.generation_config = self._config  # `generate` fills what is not set with the model's own values

    def __call__(self, prompts: Sequence[Prompt]) -> list[Completions]:
        """The completions of each prompt."""
        import torch

        pad, device = self._tokenizer.pad_token_id, self._model.device
        width = max(len(prompt.ids) for prompt in prompts)
        pads = [width - len(prompt.ids) for prompt in prompts]
        ids = torch.tensor([[pad] * count + prompt.ids for count, prompt in zip(pads, prompts, strict=True)])
        mask = torch.tensor([[0] * count + [1] * (width - count) for count in pads])
        torch.manual_seed(derive_seed(self._sampling.seed, *(prompt.id for prompt in prompts)))
        with torch.inference_mode():
            out: Any = self._model.generate(  # type: ignore[operator]
                ids.to(device),
                attention_mask=mask.to(device),
                generation_config=self._config,
                logits_processor=self._processors(mask) if self._processors else None,
            )
        rows = iter(out[:, width:].tolist())
        return [self._completions(prompt, rows) for prompt in prompts]

    def _completions(self, prompt: Prompt, rows: Iterator[list[int]]) -> Completions:
        cut = [_until_end(next(rows), self._ends) for _ in range(self._sampling.num_completions)]
        start = self._tokenizer.decode(prompt.ids, skip_special_tokens=True)
        wholes = [str(self._tokenizer.decode(prompt.ids + ids, skip_special_tokens=True)) for ids, _ in cut]
        return Completions(
            [whole[len(start) :] for whole in wholes],
            [ids for ids, _ in cut],
            ["stop" if ended else "length" for _, ended in cut],
        )


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a text: the tokenizer's EOS, and those that the model's folder names, as vLLM takes them."""
    end: Any = model.generation_config.eos_token_id if model.generation_config else None
    return {*(end if isinstance(end, list) else [end]), tokenizer.eos_token_id} - {None}


def _until_end(ids: list[int], ends: set[Any]) -> tuple[list[int], bool]:
    """The ids up to and with the first that ends a response, and whether there is one."""
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1], True
    return ids, False
