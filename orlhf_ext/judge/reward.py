"""``judge``: a chat model, or a trained generative reward model, compares the samples of a prompt in pairs.

Each pair is shown in both orders. A reward is the share of its comparisons that a sample wins, or its Bradley-Terry
score (see `tournament`). Two equal responses tie without a call, and an empty one loses without one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from ..cli.errors import UserError
from ..cli.flags import COUNT, LENGTH, NOT_NEGATIVE, POSITIVE, SHARE, whole
from ..extensions.inject import say
from ..files.sources import run_records
from ..litbench.prompts import PREFERRED
from ..rewards.base import Reward, RewardBatch, RewardContext, RewardResult, Rollout
from . import tournament
from .local import Answer, Backend, Style, Two
from .template import behind, read_template
from .tournament import Game, Pairs

if TYPE_CHECKING:
    from .local import ByLogprob, ByText
    from .served import Served

Verdict = Literal["logprob", "text"]
Form = Literal["win_rate", "bradley_terry", "brpo"]

#: what has an effect only with a model in this process, only behind a URL, only with one kind of verdict or score
_LOCAL = ("style", "opening", "max_len", "batch_tokens", "dtype", "attn_implementation", "backend")
_SERVED = ("parallel", "tries", "timeout", "pause", "body")
_WRITTEN = ("reasons", "retries", "max_new_tokens", "backend")
_FEWEST_CALLS = 16  # in a batch, from which on verdicts that are all the same are no chance


class Player(NamedTuple):
    """A response as the judge is shown it."""

    id: str
    text: str
    #: whether lines were taken out that pass for the judge's own
    forged: bool


class Group(NamedTuple):
    """The samples of a prompt, or a sample and its label, and their comparisons."""

    #: in the batch; the label is behind them
    rows: list[int]
    players: list[Player]
    prompt: str
    pairs: list[tuple[int, int]]
    pivot: int | None


@dataclass
class Judge(Reward):
    """A judge compares the samples of a prompt in pairs, in both orders: win rates or Bradley-Terry scores."""

    model: Annotated[str, "folder or hub name of the judge; with --judge.url, its name there"] = ""
    url: Annotated[list[str], "servers with OpenAI's chat completions, http://host:8000/v1"] = field(
        default_factory=list
    )
    template: Annotated[
        str,
        "what it is asked: response, short, popularity (LitBench's), or a FILE with {a}, {b}, and perhaps {prompt}",
    ] = "response"
    verdict: Annotated[Verdict, "logprob: how likely each letter is; text: the letter that it writes"] = "logprob"
    pairs: Annotated[
        Pairs,
        "round_robin (n(n-1) calls for n samples), pivot (all with one: 2(n-1)), circle (each with the next: 2n)",
    ] = "round_robin"
    form: Annotated[Form, "win_rate, bradley_terry, or brpo (1, -1; with pivot)"] = "win_rate"
    most_skew: Annotated[float, "brpo: the rewards of a prompt are all 0 if their mean is further from 0", SHARE] = 0.6
    against_label: Annotated[bool, "a sample that is alone, as in evaluation, is compared with its label"] = False
    after: Annotated[str, "only what follows the last TEXT, such as </think>, is judged"] = ""
    reasons: Annotated[bool, "text: it writes its reasons before the verdict"] = False
    opening: Annotated[str, "logprob: what its answer begins with, before the letter"] = PREFERRED
    style: Annotated[Style, "chat (its template), marker (LitBench's), or plain (the question as it is)"] = "chat"
    retries: Annotated[int, "text: further tries for an answer without a verdict", whole()] = 1
    max_new_tokens: Annotated[int, "text: of an answer; 0: 16, or 1024 with --judge.reasons", whole()] = 0
    max_len: Annotated[
        int, "tokens of question and answer, responses are cut to fit; 0: all that it has positions for",
        whole(2, also=(0,)),
    ] = 0  # fmt: skip
    backend: Annotated[Backend, "text: vllm, hf, or auto (vllm, where it is installed)"] = "auto"
    batch_tokens: Annotated[int, "padded tokens in a batch", LENGTH] = 16384
    dtype: Annotated[Literal["bfloat16", "float16", "float32"], "bfloat16, float16 or float32"] = "bfloat16"
    attn_implementation: Annotated[str, "as in transformers"] = "sdpa"
    gpus: Annotated[float, "the part of a GPU that one copy takes, in a run with GPUs", NOT_NEGATIVE] = 0.25
    parallel: Annotated[int, "requests at a time", COUNT] = 32
    tries: Annotated[int, "of one request, before the run is stopped", COUNT] = 5
    timeout: Annotated[float, "seconds that a whole answer may take", POSITIVE] = 180.0
    pause: Annotated[
        float, "seconds before the second try; each further one waits twice as long, 30 at most", NOT_NEGATIVE
    ] = 1.0
    body: Annotated[dict[str, Any], "more keys of a request, as JSON; null leaves one out"] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        if not (self.model or self.url):
            raise ValueError("no judge is named; give --judge.model PATH, or --judge.url URL")
        where = "--judge.url" if self.url else "--judge.model alone"
        for names, wrong, what in (
            (_LOCAL, bool(self.url), where),
            (_SERVED, not self.url, where),
            (_WRITTEN, self.verdict == "logprob" and not self.url, "--judge.verdict logprob"),
            (("opening",), self.verdict == "text", "--judge.verdict text"),
            (("most_skew",), self.form != "brpo", f"--judge.form {self.form}"),
        ):
            for name in names if wrong else ():
                if getattr(self, name) != _default(name):
                    raise ValueError(f"--judge.{name} has no effect with {what}; leave it out")
        if self.form == "brpo" and self.pairs != "pivot":
            raise ValueError("--judge.form brpo compares with a pivot; give --judge.pairs pivot")
        if self.url:
            from ..rewards.servers import check_urls

            check_urls(self.url, "--judge.url")
            self.gpus, self.waits = 0.0, True  # type: ignore[misc]
        self._template = read_template(self.template, self.reasons)
        self._room = self.max_new_tokens or (1024 if self.reasons else 16)
        self._letters = self.verdict == "text"
        self._judge: ByLogprob | ByText | Served

    def check(self, args: SimpleNamespace) -> None:
        """Refuse what cannot work, before anything is started.
        Raises UserError if prompts have one sample each, no server listens, or there is no such model or label."""
        if args.rollout.n_samples_per_prompt < 2:
            raise UserError(
                "reward 'judge' compares the samples of a prompt, and --rollout.n_samples_per_prompt "
                f"{args.rollout.n_samples_per_prompt} leaves nothing to compare; give 2 or more"
            )
        if self.url:
            from ..rewards.servers import check_listening

            check_listening(self.url, self.name)
        else:
            from ..models.folder import find_model, length_limit

            length_limit(find_model(self.model, "--judge.model"), self.max_len, "--judge.max_len", "--judge.model")
        if self.against_label:
            for flag, line in run_records(args):
                label = line.record.get(args.data.label_key or "")
                if flag == "--eval.dataset" and not (isinstance(label, str) and label.strip()):
                    raise UserError(
                        f"{line.where} has no text {args.data.label_key!r} to compare samples with; give "
                        "--data.label_key, or leave --judge.against_label out"
                    )
        samples = args.rollout.n_samples_per_prompt
        calls = 2 * len(tournament.pairs_of(samples, self.pairs))
        say(f"judge: {calls * args.rollout.batch_size} calls a batch, {calls} for the {samples} samples of a prompt")

    def setup(self, context: RewardContext) -> None:
        """Load the judge, or find it, and ask it what a judge must know.
        Raises UserError if it cannot be used: it never answers, or gives the same letter whatever it is shown."""
        self._seed = int(getattr(getattr(context.args, "train", None), "seed", 0))
        self._question = prompt_reader(context) if self._template.shows_prompt else lambda prompt: ""
        self._tokens = set(context.tokenizer.all_special_tokens) if context.tokenizer is not None else set()
        self._judge = self._served() if self.url else self._local()
        from .probe import check_judge

        check_judge(self._judge.compare, self._letters)

    def _served(self) -> Served:
        from ..rewards.servers import Client
        from .served import KEY, Served, endpoint

        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        urls = [endpoint(url) for url in self.url]
        client = Client(urls, self.tries, self.timeout, self.pause, "--judge.", headers)
        logprobs = self.verdict == "logprob"
        return Served(client, self.model, self._template, logprobs, self._room, self.parallel, self.retries, self.body)

    def _local(self) -> ByLogprob | ByText:
        from ..models.folder import find_model, length_limit, load_tokenizer
        from .local import ByLogprob, ByText, Reader

        folder = find_model(self.model, "--judge.model")
        max_len = length_limit(folder, self.max_len, "--judge.max_len", "--judge.model")
        tokenizer = load_tokenizer(folder, "--judge.model")
        self._tokens |= set(tokenizer.all_special_tokens)
        reader = Reader(tokenizer, self._template, self.style, max_len, self._room if self._letters else 0)
        if not self._letters:
            return ByLogprob(reader, folder, self.opening, self.dtype, self.attn_implementation, self.batch_tokens)
        whole_gpus = max(1, int(self.gpus))
        memory = 0.9 * min(1.0, self.gpus or 1.0)
        how = (self.backend, self.dtype, self.attn_implementation, memory, whole_gpus)
        return ByText(reader, folder, *how, self.retries, self._seed)

    def score(self, batch: RewardBatch) -> RewardResult:
        """Rewards in the batch's order, and what is logged of how the judge judges: see the documentation.
        Raises UserError if the judge cannot answer, or answers alike whatever it is shown."""
        groups, games, answers = self.play(batch)
        self._refuse_deaf(games)
        return self._result(batch, groups, games, answers)

    def play(self, batch: RewardBatch) -> tuple[list[Group], list[list[Game]], list[list[Answer | None]]]:
        """The samples of each prompt, their games, all that need the judge in one call of it, and its answers."""
        groups = [self._group(batch, rows) for rows in batch.groups()]
        games: list[list[Game]] = []
        shown: list[Two] = []
        for group in groups:
            games.append([])
            for i, j in group.pairs:
                first, second = group.players[i], group.players[j]
                points = walkover(first.text, second.text)
                games[-1].append(Game(i, j, points=points))
                if points is None:
                    name = f"the samples {first.id!r} and {second.id!r}"
                    shown.append(Two(name, group.prompt, first.text, second.text))
        said = iter(self._judge.compare(shown) if shown else [])
        answers = [[next(said) if game.points is None else None for game in row] for row in games]
        games = [
            [game if answer is None else game._replace(leans=answer.leans) for game, answer in zip(*both, strict=True)]
            for both in zip(games, answers, strict=True)
        ]
        return groups, games, answers

    def _group(self, batch: RewardBatch, rows: list[int]) -> Group:
        rollouts = [batch[row] for row in rows]
        players = [self._player(rollout.id, behind(rollout.response, self.after)) for rollout in rollouts]
        if len(rows) == 1 and self.against_label and isinstance(label := rollouts[0].label, str) and label.strip():
            players.append(self._player("its label", label))
        pivot = _pivot(self._seed, rollouts, players) if self.pairs == "pivot" and len(players) > 1 else None
        pairs = tournament.pairs_of(len(players), self.pairs, pivot or 0)
        return Group(rows, players, self._question(rollouts[0].prompt), pairs, pivot)

    def _player(self, name: str, text: str) -> Player:
        return Player(name, *self._template.clean(text, self._tokens))

    def _refuse_deaf(self, games: Sequence[Sequence[Game]]) -> None:
        """Rewards that are all equal teach nothing, and the run would not end."""
        called = [game for row in games for game in row if game.points is None]
        if 2 * len(called) < _FEWEST_CALLS:
            return
        if tournament.unreadable(called) == 1:
            raise UserError(
                f"none of the judge's {2 * len(called)} answers has a verdict; show it how to answer in "
                "--judge.template, or give it more room with --judge.max_new_tokens"
            )
        share = tournament.share_a(called)
        if self._letters and share in (0.0, 1.0):
            raise UserError(
                f"the judge says {'A' if share else 'B'} in each of {2 * len(called)} calls, whatever it is shown, so "
                "that all rewards are equal; take another judge, or give --judge.verdict logprob, which cancels a "
                "leaning"
            )

    def _result(
        self,
        batch: RewardBatch,
        groups: Sequence[Group],
        games: Sequence[list[Game]],
        answers: Sequence[list[Answer | None]],
    ) -> RewardResult:
        rewards = [0.0] * len(batch)
        measures = self._measures()
        found: dict[str, list[float | None]] = {name: [None] * len(batch) for name in (*measures, "length_corr")}
        counts = {name: [0.0] * len(batch) for name in ("calls", "cut", "forged", "bounded")}
        for group, own_games, own_answers in zip(groups, games, answers, strict=True):
            scores = self._scores(len(group.players), own_games, group.pivot)
            words = [float(len(player.text.split())) for player in group.players]
            corr = tournament.correlation(scores, words)
            for place, row in enumerate(group.rows):
                rewards[row] = scores[place]
                here = [place in (game.first, game.second) for game in own_games]
                mine = [game for game, is_mine in zip(own_games, here, strict=True) if is_mine]
                heard = [a for a, is_mine in zip(own_answers, here, strict=True) if is_mine and a is not None]
                found["length_corr"][row] = corr
                for name, measure in measures.items():
                    found[name][row] = measure(mine)
                counts["calls"][row] = sum(answer.calls for answer in heard) / 2
                counts["cut"][row] = _share([answer.cut for answer in heard])
                counts["bounded"][row] = _share([answer.bounded for answer in heard])
                counts["forged"][row] = float(group.players[place].forged)
        return RewardResult(rewards, {**{name: _filled(values) for name, values in found.items()}, **counts})

    def _measures(self) -> dict[str, Callable[[list[Game]], float | None]]:
        letters = self._letters
        found: dict[str, Callable[[list[Game]], float | None]] = {
            "ties": lambda games: tournament.ties(games, letters),
            "skipped": tournament.skipped,
            "unreadable": tournament.unreadable,
            "share_a": tournament.share_a,
            "consistency": tournament.consistency,
        }
        return found if letters else {**found, "bias": tournament.bias, "margin": tournament.margin}

    def _scores(self, size: int, games: list[Game], pivot: int | None) -> list[float]:
        if self.form == "brpo":
            return tournament.brpo(size, games, pivot or 0, self._letters, self.most_skew)
        if self.form == "win_rate":
            return tournament.win_rates(size, games, self._letters, pivot)
        if self._letters:
            return tournament.bradley_terry(size, games)
        return tournament.strengths(size, games)


def _default(name: str) -> Any:
    found = next(one for one in fields(Judge) if one.name == name)
    return found.default_factory() if callable(found.default_factory) else found.default


def walkover(first: str, second: str) -> float | None:
    """The points of ``first`` where nobody need be asked: equal texts tie, and nothing loses to something."""
    if first == second:
        return 0.5
    return None if first and second else float(bool(first))


def _pivot(seed: int, rollouts: Sequence[Rollout], players: Sequence[Player]) -> int:
    """Who the others are compared with: by a hash of the seed, the prompt and the text, so that neither the order of
    the samples nor a run that was resumed changes it."""
    from ..models.samplers import derive_seed

    keys = [derive_seed(seed, rollouts[0].prompt, player.text) for player in players[: len(rollouts)]]
    return len(players) - 1 if len(players) > len(rollouts) else keys.index(min(keys))


def _share(marks: Sequence[bool]) -> float:
    return sum(marks) / len(marks) if marks else 0.0


def _filled(values: Sequence[float | None]) -> list[float]:
    """With the mean of the others where there was nothing to count, so that the mean that is logged is theirs."""
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if known else 0.0
    return [mean if value is None else value for value in values]


def prompt_reader(context: RewardContext) -> Callable[[str], str]:
    """What makes of a prompt, as the policy read it, the text that the judge is shown: without what the policy's chat
    template or ``--data.input_template`` puts around a question and, of other chats, without special tokens."""
    tokenizer = context.tokenizer
    around: list[tuple[str, str]] = []
    template = getattr(getattr(context.args, "data", None), "input_template", None)
    if template and "{}" in template:
        before, _, after = template.partition("{}")
        around.append((before, after))
    if tokenizer is not None and tokenizer.chat_template:
        from ..models.chats import ChatError, render_with

        mark = "orlhf-ext-question"
        try:
            before, found, after = render_with(tokenizer)([{"role": "user", "content": mark}], True).partition(mark)
            around += [(before, after)] if found else []
        except ChatError:
            pass  # prompts that it refuses never get here
    special = [] if tokenizer is None else tokenizer.all_special_tokens

    def read(prompt: str) -> str:
        for before, after in around:
            if prompt.startswith(before) and prompt.endswith(after) and len(prompt) >= len(before) + len(after):
                inner = prompt[len(before) : len(prompt) - len(after)]
                if not any(token in inner for token in special):
                    return inner.strip()
        for token in special:
            prompt = prompt.replace(token, "")
        return prompt.strip()

    return read
