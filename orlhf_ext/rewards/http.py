"""``http``: rewards from servers that keep the contract of OpenRLHF's ``serve_rm``.

A request is ``POST {"query": [...], "prompts": [...], "labels": [...]}``, where a query is prompt and response with
their special tokens. The answer is ``{"rewards": [...]}``, with ``"scores": [...]`` and ``"extra_logs": {NAME: [...]}``
if the server has them, each as long as the query (for a single query, plain numbers, too).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Event
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar

from ..cli.errors import UserError
from ..cli.flags import COUNT, NOT_NEGATIVE, POSITIVE
from .base import Reward, RewardBatch, RewardContext, RewardResult
from .servers import Client, check_listening, check_urls, side_by_side


@dataclass
class HTTP(Reward):
    """Rewards from OpenRLHF's serve_rm, or any server with its contract.

    A batch is cut into requests, which go to the servers in turn, several at a time. A server that cannot be reached,
    is too slow, or answers 408, 425, 429 or 5xx is tried again after a growing pause, and with several servers the next
    one takes its place; any other answer that is not the contract's, or is larger than 64 MiB, ends the run at once.
    """

    waits: ClassVar[bool] = True

    url: Annotated[list[str], "the servers, http://host:port/get_reward"]
    batch_size: Annotated[int, "rollouts in a request", COUNT] = 16
    threads: Annotated[int, "requests at a time", COUNT] = 8
    tries: Annotated[int, "of one request, before the run is stopped", COUNT] = 5
    timeout: Annotated[float, "seconds that a whole answer may take", POSITIVE] = 180.0
    pause: Annotated[
        float, "seconds before the second try; each further one waits twice as long, 30 at most", NOT_NEGATIVE
    ] = 1.0

    def __post_init__(self) -> None:
        check_urls(self.url, "--http.url")
        self._client = Client(self.url, self.tries, self.timeout, self.pause, "--http.")
        self._decode: Any = None

    def check(self, args: SimpleNamespace) -> None:
        """Refuse a run whose servers are all down. What a cluster reaches is not known here.
        Raises UserError if no server listens."""
        check_listening(self.url, self.name)

    def setup(self, context: RewardContext) -> None:
        """Keep the policy's tokenizer, which writes the queries."""
        if context.tokenizer is not None:
            self._decode = context.tokenizer.decode

    def score(self, batch: RewardBatch) -> RewardResult:
        """Ask the servers. Raises UserError if no server answered, or one broke the contract; its address is named."""
        parts = [
            batch.take(range(i, min(i + self.batch_size, len(batch)))) for i in range(0, len(batch), self.batch_size)
        ]
        answers = side_by_side(self._ask, parts, self.threads)
        columns: dict[str, list[Any]] = {}
        for answer in answers:
            if set(answer) != set(answers[0]):
                changed = ", ".join(sorted(set(answer) ^ set(answers[0])))
                raise UserError(f"the servers give {changed} with some answers and not with others; fix them")
            for key, values in answer.items():
                columns.setdefault(key, []).extend(values)
        rewards, scores = columns.pop("rewards"), columns.pop("scores", None)
        return RewardResult(
            rewards, {key.removeprefix("extra_logs."): values for key, values in columns.items()}, scores
        )

    def _ask(self, number: int, part: RewardBatch, stop: Event) -> dict[str, list[Any]]:
        """One request: column name -> a value for each rollout."""
        queries = [self._query(rollout.prompt, rollout.response, rollout.token_ids) for rollout in part]
        payload = {"query": queries, "prompts": part.prompts, "labels": part.labels}
        answer, server = self._client.ask(number, payload, stop)
        return _columns(answer, len(part), server)

    def _query(self, prompt: str, response: str, token_ids: Any) -> str:
        if self._decode is None or not token_ids:
            return prompt + response
        return str(self._decode(list(token_ids), skip_special_tokens=False))


def _columns(answer: Any, count: int, server: str) -> dict[str, list[Any]]:
    """The answer's columns, each of ``count`` values; extra logs as ``extra_logs.NAME``."""
    if not isinstance(answer, Mapping) or answer.get("rewards") is None:
        raise UserError(f"the server {server} answers without 'rewards'; it must answer as serve_rm does")
    found = {"rewards": answer["rewards"]}
    if answer.get("scores") is not None:
        found["scores"] = answer["scores"]
    extra = answer.get("extra_logs") or {}
    if not isinstance(extra, Mapping):
        raise UserError(f"the server {server} answers with 'extra_logs' that are not an object; fix it")
    found |= {f"extra_logs.{key}": values for key, values in extra.items()}
    for key, values in found.items():
        if count == 1 and not isinstance(values, list):
            found[key] = values = [values]
        if not isinstance(values, list) or len(values) != count:
            number = len(values) if isinstance(values, list) else "no list of"
            raise UserError(
                f"the server {server} answers {number} {key} for {count} queries; it must give one for each"
            )
    return found
