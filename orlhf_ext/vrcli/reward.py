"""``vrcli``: the reward in ``train_ppo_ray``. Its labels carry gold text, conversation and baseline, as
``orlhf-ext vrcli baseline`` wrote them; the reference model, which the launcher has anyway, scores the plans."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from ..backends.machine import gpu_present
from ..backends.resources import cluster_address
from ..cli.errors import UserError
from ..extensions.inject import say
from ..models.chats import ChatError, as_messages, render_with
from ..models.folder import context_length, find_model, load_tokenizer
from ..models.spans import mean_nll
from ..openrlhf_fixes.chat_data import REMEDY
from ..rewards import Reward, RewardBatch, RewardContext, RewardResult
from .fingerprint import check_fingerprint, digest, make_fingerprint, read_fingerprint
from .improvement import extract_plan, improvement, map_reward  # noqa: F401 - their public place
from .labels import Label, baseline_of, read_label, read_labelled
from .settings import Settings

if TYPE_CHECKING:
    from .plans import Noise

_MODEL = "--actor.model_name_or_path"


@dataclass
class VRCLI(Settings, Reward):
    """How much a plan lowers the perplexity of the gold text (Gurung & Lapata, 2025)."""

    name: ClassVar[str] = "vrcli"
    needs_reference = True

    def check(self, args: SimpleNamespace) -> None:
        """Refuse labels and baselines that this run cannot use, before a model is loaded.

        Raises:
            UserError: a label cannot be read or has no baseline, baselines have another fingerprint, a prompt leaves no
                room to generate, or a plan none in the model's context; file and line are named.
        """
        from .sequences import Encoder

        if args.data.label_key != "label":
            raise UserError("reward 'vrcli' reads the column 'label'; give --data.label_key label")
        folder = find_model(args.actor.model_name_or_path, _MODEL)
        tokenizer = load_tokenizer(folder, _MODEL)
        parts = self._fingerprint(args, folder, tokenizer)
        encoder = Encoder(tokenizer, self.system, self.tail, context_length(folder))
        for value in (args.data.prompt_dataset, args.eval.dataset):
            for path in value.split(",") if value else ():
                self._check_records(path.strip(), args, encoder, parts)

    def _fingerprint(
        self, args: SimpleNamespace, folder: Any, tokenizer: Any, device: str | None = None
    ) -> dict[str, str]:
        attention = args.ds.attn_implementation
        return make_fingerprint(folder, tokenizer, args.ds.param_dtype, attention, self.system, self.tail, device)

    def _check_records(self, path: str, args: SimpleNamespace, encoder: Any, parts: dict[str, str]) -> None:
        if not gpu_present() and cluster_address():  # whose workers may have GPUs; `setup` knows
            parts = {**parts, "device": read_fingerprint(path)["device"]}
        check_fingerprint(path, parts)
        wanted = digest(parts)
        labels, plans = [], []
        for record, label in read_labelled(path):
            baseline_of(label, wanted)
            labels.append(label)
            plans.append(self._plan_tokens(record, label, args, encoder.tokenizer))
        encoder.check_room(labels, plans, "--rollout.max_new_tokens")

    def _plan_tokens(self, record: dict[str, Any], label: Label, args: SimpleNamespace, tokenizer: Any) -> int:
        """How many tokens a response to a record's prompt can have."""
        data, new = args.data, args.rollout.max_new_tokens
        prompt = record[data.input_key]
        if data.apply_chat_template:
            try:
                prompt = render_with(tokenizer)(as_messages(prompt, "user"), True)
            except ChatError as error:
                raise UserError(f"{label.name}{error}; {REMEDY}") from error
        elif data.input_template:
            prompt = data.input_template.format(prompt)
        tokens = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        room = data.max_len - tokens
        if room < (new or 1):
            wanted = f", not --rollout.max_new_tokens {new}" if new else ""
            raise UserError(
                f"{label.name} has a prompt of {tokens} tokens, which leaves {max(0, room)} of --data.max_len "
                f"{data.max_len} to generate{wanted}; raise --data.max_len, or leave longer records out with "
                "build_data story --tokenizer DIR --max_prompt_tokens N"
            )
        return new or room

    def setup(self, context: RewardContext) -> None:
        """Make the encoder of the reference model, which is the policy's first state."""
        from .sequences import Encoder

        assert context.score_reference is not None  # `needs_reference`
        self._score_reference = context.score_reference
        folder = find_model(context.args.actor.model_name_or_path, _MODEL)
        parts = self._fingerprint(context.args, folder, context.tokenizer, self._score_reference.device)
        self._digest = digest(parts)
        self._noise: Noise | None = None
        self._encoder = Encoder(context.tokenizer, self.system, self.tail, context_length(folder))  # type: ignore[arg-type]

    def score(self, batch: RewardBatch) -> RewardResult:
        """Rewards, and what is logged with them.
        Raises UserError as `score_plans` does, or if a label cannot be read; the sample is named."""
        from .plans import measure_noise, score_plans

        labels = [read_label(rollout.label, f"sample {rollout.id!r}") for rollout in batch]
        if self._noise is None:
            self._noise = measure_noise(batch.responses, labels, self._encoder, self._nlls, self.markers)
            if self._noise is not None:
                say(self._noise.describe(self))
        found = score_plans(batch.responses, labels, self._encoder, self._nlls, self, self._digest)
        metrics = {name.removeprefix("vrcli_"): values for name, values in found.metrics.items()}
        return RewardResult(found.rewards, metrics, found.scores)

    def _nlls(self, spans: Any) -> list[float]:
        masks = [[0] * span.start + [1] * span.scored for span in spans]
        return [mean_nll(values) for values in self._score_reference([span.ids for span in spans], masks)]
