"""``vrcli``: the reward in ``train_ppo_ray``. Its labels carry gold text, conversation and baseline, as
``orlhf_ext.vrcli.baseline`` wrote them; the reference model that the launcher holds anyway scores the plans."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

from ..errors import UserError
from ..model_folder import context_length, find_model, load_tokenizer
from ..rewards import Reward, RewardBatch, RewardContext, RewardResult
from ..spans import mean_nll
from .fingerprint import digest, make_fingerprint
from .labels import read_label
from .settings import Settings


@dataclass
class VRCLI(Settings, Reward):
    """How much a plan lowers the perplexity of the gold text (Gurung & Lapata, 2025)."""

    name: ClassVar[str] = "vrcli"
    needs_reference: ClassVar[bool] = True

    def check(self, args: SimpleNamespace) -> None:
        """Refuse labels and baselines that this run cannot use, before a model is loaded.

        Raises:
            UserError: a label cannot be read or has no baseline, baselines have another fingerprint, or a prompt leaves
                no room to generate; file and line are named.
        """
        if not args.data.label_key:
            raise UserError("reward 'vrcli' reads labels; give --data.label_key label")
        folder = find_model(args.actor.model_name_or_path, "--actor.model_name_or_path")
        tokenizer = load_tokenizer(folder, "--actor.model_name_or_path")
        parts = self._fingerprint(args, folder, tokenizer)
        for flag, path in (("--data.prompt_dataset", args.data.prompt_dataset), ("--eval.dataset", args.eval.dataset)):
            if path:
                self._check_records(flag, path, args, tokenizer, parts)

    def _fingerprint(self, args: SimpleNamespace, folder: Any, tokenizer: Any) -> dict[str, str]:
        return make_fingerprint(
            folder, tokenizer, args.ds.param_dtype, args.ds.attn_implementation, self.system, self.tail
        )

    def _check_records(
        self, flag: str, path: str, args: SimpleNamespace, tokenizer: Any, parts: dict[str, str]
    ) -> None:
        from .baseline import check_fingerprint, read_labelled
        from .labels import baseline_of
        from .sequences import Encoder

        check_fingerprint(path, parts)
        Encoder(tokenizer, self.system, self.tail)
        wanted = digest(parts)
        room = args.data.max_len - args.rollout.max_new_tokens
        for record, label in read_labelled(path):
            baseline_of(label, wanted)
            prompt = record.get(args.data.input_key)
            if prompt is None:
                raise UserError(f"{label.name} has no {args.data.input_key!r}; give --data.input_key prompt")
            if not isinstance(prompt, str):
                prompt = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            if (tokens := len(tokenizer(prompt, add_special_tokens=False)["input_ids"])) > room:
                raise UserError(
                    f"{label.name} has a prompt of {tokens} tokens, and --data.max_len {args.data.max_len} less "
                    f"--rollout.max_new_tokens {args.rollout.max_new_tokens} leaves {room}; raise the former, or leave "
                    "longer records out with build_data story --tokenizer DIR --max_tokens N"
                )

    def setup(self, context: RewardContext) -> None:
        """Make the encoder of the reference model, which is the policy's first state."""
        from .sequences import Encoder

        args = context.args
        folder = find_model(args.actor.model_name_or_path, "--actor.model_name_or_path")
        self._digest = digest(self._fingerprint(args, folder, context.tokenizer))
        self._encoder = Encoder(context.tokenizer, self.system, self.tail, context_length(folder))  # type: ignore[arg-type]
        self._score_reference: Any = context.score_reference

    def score(self, batch: RewardBatch) -> RewardResult:
        """Rewards, and what is logged with them.

        Raises:
            UserError: as `score_plans`; a label cannot be read; the sample is named.
        """
        from .plans import score_plans

        labels = [read_label(rollout.label, f"sample {rollout.id!r}") for rollout in batch]
        found = score_plans(batch.responses, labels, self._encoder, self._nlls, self, self._digest)
        metrics = {name.removeprefix("vrcli_"): values for name, values in found.metrics.items()}
        return RewardResult(found.rewards, metrics, found.scores)

    def _nlls(self, spans: Any, groups: Any) -> list[float]:
        masks = [[0] * span.start + [1] * span.scored for span in spans]
        return [mean_nll(values) for values in self._score_reference([span.ids for span in spans], masks)]
