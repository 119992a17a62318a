"""K-wise rows for OpenRLHF's `DPOTrainer`: one item is a record, one row is a completion.

Prompt and completion are tokenised apart and joined as ids, so that the boundary between them is exact by construction.
No special token is added, as in OpenRLHF's own data sets. The completion ends with the end-of-sequence id unless it was
cut, or stopped by length: not with a space and EOS as text (see `models.texts`), because what is trained are the ids
that the policy sampled, and a policy samples no space that is not its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset as Table
from datasets import Features, List, Value
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ..cli.errors import UserError
from ..models.chats import render_with
from ..models.texts import encode
from .rows import Kwise, Rules, chat_texts, parse_record

_FEATURES = Features(
    ids=List(Value("int32")),  # all rows of the record, one after the other
    lengths=List(Value("int32")),
    prompt_lengths=List(Value("int32")),
    rewards=List(Value("float64")),
    prompt_cut=List(Value("bool")),
    response_cut=List(Value("bool")),
)


class Rows(NamedTuple):
    """What travels beside the tensors of a batch, in the place of OpenRLHF's prompt lengths."""

    #: tokens of the prompt, for each row
    prompt_lengths: list[int]
    #: index of the record, for each record
    records: list[int]
    #: cached reference log-probabilities ``(rows,)``, or None when the reference model is asked
    reference: torch.Tensor | None


@dataclass
class Encoder:
    """Turns a batch of raw records into token rows (see `_FEATURES`)."""

    tokenizer: Any
    rules: Rules
    max_length: int
    max_completion_length: int
    input_template: str | None = None

    def __call__(self, columns: dict[str, list], indices: Sequence[int]) -> dict[str, list]:
        """Columns of raw records in, columns of token rows out; the form that `datasets.Dataset.map` calls."""
        records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        parsed = [parse_record(r, f"record {i + 1}", self.rules) for r, i in zip(records, indices, strict=True)]
        texts = [self._texts(k, i) for k, i in zip(parsed, indices, strict=True)]
        prompts = encode(self.tokenizer, [prompt for prompt, _ in texts])
        responses = iter(encode(self.tokenizer, [text for _, completions in texts for text in completions]))
        out: dict[str, list] = {name: [] for name in _FEATURES}
        for kwise, prompt, (_, completions), index in zip(parsed, prompts, texts, indices, strict=True):
            if not prompt:
                raise UserError(f"record {index + 1} has a prompt without any token; remove the record")
            kept = [self._response(kwise, n, next(responses)) for n in range(len(completions))]
            size = self.rules.num_contrastive
            rows = [
                self._row(prompt, kept[n], max(len(ids) for ids, _ in kept[n // size * size :][:size]), reward)
                for n, reward in enumerate(kwise.rewards)
            ]
            out["ids"].append([i for row in rows for i in row[0]])
            for name, column in zip(list(_FEATURES)[1:], zip(*(row[1:] for row in rows), strict=True), strict=True):
                out[name].append(list(column))
        return out

    def _response(self, kwise: Kwise, n: int, tokens: list[int]) -> tuple[list[int], bool]:
        """The ids of a response, and whether its end was cut off."""
        reason = kwise.finish_reasons[n] if kwise.finish_reasons else None
        if kwise.token_ids:
            response = list(kwise.token_ids[n])
            finished = reason is not None and reason != "length"
        else:
            response, finished = tokens, reason != "length"
        if finished and not (response and response[-1] in self._special):
            response.append(self.tokenizer.eos_token_id)
        # At least one id of the prompt stays: the first id of a row is predicted by nothing.
        room = min(self.max_completion_length or self.max_length, self.max_length - 1)
        return response[:room], len(response) > room

    def _row(
        self, prompt: list[int], response: tuple[list[int], bool], longest: int, reward: float
    ) -> tuple[list[int], int, int, float, bool, bool]:
        """One row: ids, its length, the prompt's length, the reward, was the prompt cut, was the response cut.

        The prompt keeps what the ``longest`` response of the group leaves: what is compared has one prompt.
        """
        kept, cut = response
        context = prompt[-(self.max_length - longest) :]
        return context + kept, len(context) + len(kept), len(context), reward, len(context) < len(prompt), cut

    def _texts(self, kwise: Kwise, index: int) -> tuple[str, list[str]]:
        """Prompt and completions as text; messages go through the chat template."""
        if not self.rules.chat:
            prompt = kwise.prompt
            return (self.input_template.format(prompt) if self.input_template else prompt), kwise.completions  # type: ignore[return-value]
        return chat_texts(render_with(self.tokenizer), kwise, f"record {index + 1}")

    @cached_property
    def _special(self) -> set[int]:
        """Ids that end a response by themselves: engines stop at end-of-turn tokens other than EOS, too."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return {*self.tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}


class KwiseDataset(Dataset):
    """Takes the place of `RewardDataset` in ``train_dpo``, with the same constructor.

    Records are tokenised once, into Arrow columns; `datasets` keeps them on disk where the raw data are on disk.

    Raises:
        UserError: a record cannot be trained on; it is named.
    """

    def __init__(
        self,
        dataset: Table,
        tokenizer: Any,
        max_length: int,
        strategy: Any,
        input_template: str | None = None,
        is_dpo: bool = True,
        num_processors: int = 8,
    ) -> None:
        """As `RewardDataset`; ``num_processors`` is not needed, because the tokenizer has threads of its own."""
        super().__init__()
        if not len(dataset):
            raise UserError("the data set for EXO has no record; check --data.dataset and --eval.dataset")
        args = strategy.args
        rules = Rules.from_args(args)
        template = getattr(args.data, "tokenizer_chat_template", None)
        if rules.chat and template:
            tokenizer.chat_template = template
        self.pad_id: int = tokenizer.pad_token_id
        encoder = Encoder(tokenizer, rules, max_length, args.exo.max_completion_len, input_template)
        self.records: Table = dataset.map(
            encoder,
            batched=True,
            with_indices=True,
            remove_columns=dataset.column_names,
            features=_FEATURES,
            load_from_cache_file=False,  # its key does not see a change of our own code
            desc="Tokenising K-wise records",
        )
        columns = self.records.with_format("arrow")[:]
        counts = pc.list_value_length(columns["lengths"]).to_numpy()
        #: ``(records + 1,)``: the rows of record i are ``row_offsets[i]`` to ``row_offsets[i + 1]``
        self.row_offsets = np.concatenate([[0], np.cumsum(counts)])
        flat = {name: pc.list_flatten(columns[name]).to_numpy() for name in list(_FEATURES)[1:]}
        #: ``(rows,)`` tokens of each row
        self.row_lengths: np.ndarray = flat["lengths"]
        self.largest_id = int(pc.max(pc.list_flatten(columns["ids"])).as_py() or 0)
        #: ``(rows,)`` float32, set by `reference_cache.attach`
        self.reference_logps: torch.Tensor | None = None
        strategy.print(_summary(counts, flat))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record ``index`` as K rows: ids, lengths, prompt lengths, rewards."""
        return {**self.records[index], "record": index}

    def collate_fn(
        self, items: list[dict[str, Any]]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Rows]:
        """Flatten records to rows, padded on the right.

        Returns:
            ids and mask ``(rows, longest)``, rewards ``(rows, 1)`` twice, and `Rows`: the five that
            `DPOTrainer.fit` unpacks, which squeezes dimension 1 of the first four.
        """
        rows = [torch.tensor(row) for item in items for row in np.split(item["ids"], np.cumsum(item["lengths"])[:-1])]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.pad_id).long()
        lengths = torch.tensor([row.numel() for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        rewards = torch.tensor([reward for item in items for reward in item["rewards"]], dtype=torch.float32)[:, None]
        records = [item["record"] for item in items]
        reference = None
        if self.reference_logps is not None:
            reference = torch.cat([self.reference_logps[slice(*self.row_offsets[i : i + 2])] for i in records])
        prompt_lengths = [length for item in items for length in item["prompt_lengths"]]
        return ids, mask, rewards, rewards, Rows(prompt_lengths, records, reference)

    def digest(self) -> str:
        """SHA-256 over every tokenised row and where its prompt ends (rewards take no part in a log-probability)."""
        sha = hashlib.sha256()
        for part in self._token_columns():
            sha.update(part)
        return sha.hexdigest()

    def _token_columns(self) -> Iterator[bytes]:
        columns = self.records.with_format("arrow")[:]
        for name in ("lengths", "prompt_lengths", "ids"):
            yield name.encode()
            for values in (pc.list_value_length(columns[name]), pc.list_flatten(columns[name])):
                for chunk in values.chunks:  # one after the other, so that where chunks end does not matter
                    yield chunk.to_numpy(zero_copy_only=False).tobytes()


def _summary(counts: np.ndarray, flat: dict[str, np.ndarray]) -> str:
    least, most = counts.min(), counts.max()
    k = f"{least}" if least == most else f"{least} to {most}"
    response = (flat["lengths"] - flat["prompt_lengths"]).mean()
    return (
        f"EXO data: {len(counts)} records, {counts.sum()} completions (K = {k}), "
        f"mean response {response:.1f} tokens, truncated: {flat['prompt_cut'].mean():.1%} of prompts, "
        f"{flat['response_cut'].mean():.1%} of responses"
    )
