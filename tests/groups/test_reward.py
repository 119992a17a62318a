"""The reward of groups: traits, a reward model with a score for each group, and a reward model for each group, all real
and tiny; what is refused before a run; and the choice of the worst group over a batch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orlhf_ext.cli.errors import UserError
from orlhf_ext.extensions import extension
from orlhf_ext.files.records import write_json, write_jsonl
from orlhf_ext.groups.label import Label, read_label, write_label
from orlhf_ext.groups.reward import Groups
from orlhf_ext.models.folder import load_tokenizer, read_config
from orlhf_ext.models.head_settings import KEY, HeadSettings
from orlhf_ext.rewards import RewardBatch, RewardContext, Rollout, arguments, selection
from orlhf_ext.rewards.combine import Combined, RewardSet

PROMPT = "\n\nHuman: hello?\n\nAssistant:"
RESPONSES = [" fine", " no idea", " fine, and you?", " hello" * 12]
GROUPS = """
groups:
  - {name: minority, proportion: 0.1, weights: {short: 1.0}}
  - {name: majority, proportion: 0.9, weights: {short: 0.5, terse: -1.0}}
"""
TRAITS = ("short=conciseness:20", "terse=conciseness:4")
LABEL = write_label(Label("hh-7", "hh"))


def batch_of(responses: list[str], label: str = LABEL) -> RewardBatch:
    return RewardBatch([Rollout(f"train 1/{i}", PROMPT, text, label) for i, text in enumerate(responses)])


def run(reward: Groups, batch: RewardBatch) -> Combined:
    rewards = RewardSet([reward])
    rewards.setup(RewardContext())
    return rewards.score(batch)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "groups.yaml"
    path.write_text(GROUPS)
    return str(path)


def with_heads(source: Path, folder: Path, settings: HeadSettings, seed: int = 3) -> Path:
    """A reward model of the tiny backbone with heads of groups, as ``train_rm --ext.use group-rm`` saves it."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    d = weights["value.weight"].shape[1]
    made = torch.Generator().manual_seed(seed)
    wide = d if settings.k is None else settings.k
    weights["value.weight"] = torch.randn(settings.num_groups, wide, generator=made).bfloat16()
    if settings.k is not None:
        weights["value.proj.weight"] = torch.randn(settings.k, d, generator=made).bfloat16() / 4
        weights["value.proj.bias"] = torch.randn(settings.k, generator=made).bfloat16()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", {**read_config(folder), KEY: settings.as_config()})
    return folder


@pytest.fixture
def group_model(reward_model: Path, tmp_path: Path) -> Path:
    norm = {"mean": [0.5, -1.0], "std": [2.0, 0.25]}
    return with_heads(reward_model, tmp_path / "group_rm", HeadSettings(["minority", "majority"], k=4, norm=norm))


def hidden_states(folder: Path, texts: list[str]) -> Any:
    """By transformers alone, one text at a time: the last hidden states ``(B, d)``, float32."""
    import torch
    from transformers import AutoModel

    tokenizer = load_tokenizer(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        ids = [tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"] for text in texts]
        return torch.cat([model(row).last_hidden_state[:, -1].float() for row in ids])


def test_gold_rewards_are_the_groups_own_scores(config: str) -> None:
    found = run(Groups("gold", config, TRAITS), batch_of(RESPONSES))
    short, terse = [0.95, 0.9, 0.85, 0.4], [0.75, 0.5, 0.25, 0.0]
    majority = [0.5 * a - b for a, b in zip(short, terse, strict=True)]
    assert found.columns["groups/reward_minority"] == pytest.approx(short)
    assert found.columns["groups/reward_majority"] == pytest.approx(majority)
    assert found.rewards == found.columns["reward/groups"] == pytest.approx(majority)
    assert found.columns["groups/argmin_minority"] == [0.0] * 4 and found.columns["groups/argmin_majority"] == [1.0] * 4
    assert set(found.columns) == {
        "reward/groups",
        *(f"groups/{what}_{name}" for what in ("reward", "argmin") for name in ("minority", "majority")),
    }


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ({"aggregate": "mean"}, lambda a, b: (a + b) / 2),
        ({"aggregate": "batch-min"}, lambda a, b: (a + b) / 2),
        ({"aggregate": "index", "index": "minority"}, lambda a, b: a),
        ({"aggregate": "weighted", "weights": (2.0, -1.0)}, lambda a, b: 2 * a - b),
        ({"aggregate": "softmin", "tau": 1e-3}, min),
    ],
)
def test_aggregates(how: dict[str, Any], wanted: Any, config: str) -> None:
    found = run(Groups("gold", config, TRAITS, **how), batch_of(RESPONSES))
    columns = (found.columns[f"groups/reward_{name}"] for name in ("minority", "majority"))
    assert found.rewards == pytest.approx([wanted(a, b) for a, b in zip(*columns, strict=True)], abs=1e-3)


def test_one_model_gives_the_scores_of_all_groups(group_model: Path) -> None:
    import torch
    from safetensors.torch import load_file

    weights = {name: value.float() for name, value in load_file(group_model / "model.safetensors").items()}
    hidden = hidden_states(group_model, [f"{PROMPT}{text} </s>" for text in RESPONSES])
    features = hidden @ weights["value.proj.weight"].T + weights["value.proj.bias"]
    wanted = features @ weights["value.weight"].T
    reward = Groups("group_rm", model=str(group_model), batch_tokens=2)
    found = run(reward, batch_of(RESPONSES))
    table = torch.tensor([found.columns[f"groups/reward_{name}"] for name in ("minority", "majority")]).T
    assert torch.allclose(table, wanted, atol=0.05) and float((wanted.amax(0) - wanted.amin(0)).min()) > 0.5
    assert found.rewards == pytest.approx(table.amin(1).tolist()) and found.columns["groups/cut"] == [0.0] * 4
    batched = run(Groups("group_rm", model=str(group_model)), batch_of(RESPONSES))
    assert batched.rewards == pytest.approx(found.rewards, abs=0.05)  # padding changes nothing but rounding
    scaled = run(Groups("group_rm", model=str(group_model), batch_tokens=2, normalize=True), batch_of(RESPONSES))
    normal = (table - torch.tensor([0.5, -1.0])) / torch.tensor([2.0, 0.25])
    assert scaled.rewards == pytest.approx(normal.amin(1).tolist(), rel=1e-4)


def test_a_long_prompt_is_cut_on_the_left_and_told(group_model: Path) -> None:
    long = RewardBatch([Rollout("a", "hello " * 40 + PROMPT, " fine", LABEL), Rollout("b", PROMPT, " fine", LABEL)])
    length = len(load_tokenizer(group_model)(f"{PROMPT} fine </s>")["input_ids"])
    found = run(Groups("group_rm", model=str(group_model), max_len=length, batch_tokens=2), long)
    assert found.columns["groups/cut"] == [1.0, 0.0] and found.rewards[0] == pytest.approx(found.rewards[1], abs=0.02)


def other_family(folder: Path) -> Path:
    """A GPT-2 classifier with a tokenizer of bytes, whose EOS pads."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast

    letters = pre_tokenizers.ByteLevel.alphabet()
    bpe = Tokenizer(models.BPE(vocab={"<end>": 0, **{c: i for i, c in enumerate(sorted(letters), 1)}}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>", pad_token="<end>").save_pretrained(folder)
    torch.manual_seed(5)
    model = GPT2ForSequenceClassification(
        GPT2Config(vocab_size=257, n_positions=256, n_embd=32, n_layer=1, n_head=2, num_labels=1, pad_token_id=0)
    )
    model.score.weight.data.normal_()
    model.bfloat16().save_pretrained(folder)
    return folder


def test_an_ensemble_reads_text_with_each_models_own_tokenizer(reward_model: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import GPT2ForSequenceClassification

    byte_model = other_family(tmp_path / "bytes")
    only = with_heads(reward_model, tmp_path / "only", HeadSettings(["third"], "independent", None, style="hh"))
    models = (f"minority={reward_model}", f"majority={byte_model}", f"third={only}")
    found = run(Groups("ensemble", models=models, batch_tokens=2), batch_of(RESPONSES))
    texts = [f"{PROMPT}{text}" for text in RESPONSES]
    for name, folder in (("minority", reward_model), ("third", only)):
        head = load_file(folder / "model.safetensors")["value.weight"].float()
        wanted = (hidden_states(folder, [f"{text} </s>" for text in texts]) @ head.T)[:, 0].tolist()
        assert found.columns[f"groups/reward_{name}"] == pytest.approx(wanted, abs=0.05)
    tokenizer = load_tokenizer(byte_model)
    judge = GPT2ForSequenceClassification.from_pretrained(byte_model, dtype=torch.bfloat16).eval()
    with torch.inference_mode():  # with "append" there is a space and EOS, which this class pools away
        ids = [tokenizer(f"{text} <end>", return_tensors="pt")["input_ids"] for text in texts]
        wanted = [judge(row).logits.float().item() for row in ids]
    assert found.columns["groups/reward_majority"] == pytest.approx(wanted, abs=0.05)
    assert max(wanted) - min(wanted) > 0.2
    columns = [found.columns[f"groups/reward_{name}"] for name in ("minority", "majority", "third")]
    assert found.rewards == pytest.approx([min(row) for row in zip(*columns, strict=True)])
    reward = Groups("ensemble", models=models[:1], batch_tokens=2, normalize=True)  # mean 5, deviation 3
    assert run(reward, batch_of(RESPONSES)).rewards == pytest.approx([(x - 5) / 3 for x in columns[0]])
    with pytest.raises(UserError, match=r"--groups.models majority .*no mean and deviation"):
        run(Groups("ensemble", models=models[:2], normalize=True), batch_of(RESPONSES))


def test_nan_names_the_record_and_the_sample(group_model: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(group_model / "model.safetensors")
    weights["value.weight"][1].fill_(3e38)  # finite; products with the hidden states overflow, in both directions
    save_file(weights, group_model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"'majority' has a score of nan for a response to 'hh-7' \(sample 'train 1/0'"):
        run(Groups("group_rm", model=str(group_model)), batch_of(RESPONSES))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"kind": "gold"}, "--groups.kind gold needs --groups.config"),
        ({"kind": "gold", "config": "c"}, "needs --groups.traits"),
        ({"kind": "group_rm"}, "needs --groups.model"),
        ({"kind": "ensemble"}, "needs --groups.models"),
        ({"kind": "gold", "config": "c", "traits": TRAITS, "normalize": True}, "normalize has no effect with .* gold"),
        ({"kind": "gold", "config": "c", "traits": TRAITS, "model": "m"}, "--groups.model has no effect"),
        ({"kind": "gold", "config": "c", "traits": ("short",)}, "--groups.traits short"),
        ({"kind": "group_rm", "model": "m", "eos": "none"}, "--groups.eos has no effect with --groups.kind group_rm"),
        ({"kind": "group_rm", "model": "m", "tau": 2.0}, "--groups.tau has no effect with --groups.aggregate min"),
        ({"kind": "group_rm", "model": "m", "aggregate": "weighted"}, "weighted needs --groups.weights"),
        ({"kind": "group_rm", "model": "m", "aggregate": "index"}, "index needs --groups.index"),
        ({"kind": "ensemble", "models": ("a=b", "a=c")}, "--groups.models a=c names 'a' a second time"),
        ({"kind": "ensemble", "models": ("a",)}, "--groups.models a must be NAME=FOLDER"),
    ],
)
def test_arguments_that_do_not_fit(words: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, UserError), match=said):
        Groups(**words)


def test_flags_make_the_reward(config: str) -> None:
    words = {"kind": "gold", "config": config, "traits": list(TRAITS), "aggregate": "weighted", "weights": ["1", "2"]}
    made = arguments.make(Groups, {f"groups.{name}": value for name, value in words.items()}, {})
    assert made == Groups("gold", config, TRAITS, aggregate="weighted", weights=(1.0, 2.0))
    assert made.gpus == 0 and Groups("group_rm", model="m").gpus == 0.25
    assert Groups("gold", config, ("short=conciseness", "good=some/model")).gpus == 0.25


def arguments_of(tmp_path: Path, labels: list[Any], reward: dict[str, Any], **more: Any) -> SimpleNamespace:
    """The launcher's arguments, as far as they are looked at."""
    space = SimpleNamespace
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": PROMPT, "label": label} for label in labels])
    args = space(
        data=space(
            prompt_dataset=str(tmp_path / "prompts.jsonl"),
            label_key="label",
            apply_chat_template=False,
            input_template=None,
        ),
        eval=space(dataset=None),
        algo=space(dynamic_filtering_enable=False),
        train=space(async_enable=False),
        ext=space(
            use=[],
            reward=["orlhf_ext.groups.reward:Groups"],
            reward_combine="sum",
            reward_args=None,
            reward_timeout=None,
        ),
        groups=space(**{name: list(v) if isinstance(v, tuple) else str(v) for name, v in reward.items()}),
    )
    for name, value in more.items():
        group, _, flag = name.partition("__")
        setattr(getattr(args, group), flag, value)
    return args


def check(args: SimpleNamespace) -> None:
    (reward,) = selection.from_args(args).rewards
    reward.check(args)


@pytest.mark.parametrize(
    ("labels", "more", "said"),
    [
        ([LABEL, "gold text"], {}, r"prompts.jsonl line 2 has a label .* it is not JSON;"),
        ([LABEL, None], {}, "line 2 has a label .* it is missing"),
        ([LABEL, json.dumps({"v": 2, "id": "a"})], {}, r"line 2 \(id 'a'\) has a label .* its version v is 2"),
        ([json.dumps({"v": 1, "style": "hh"})], {}, "its id is not text"),
        ([json.dumps({"v": 1, "id": "a", "style": "plain"})], {}, r"line 1 \(id 'a'\) .* its style is 'plain'"),
        ([LABEL, write_label(Label("b", "chat"))], {}, r"line 2 \(id 'b'\) has a prompt of style chat, .* style hh"),
        ([LABEL], {"data__label_key": "answer"}, "give --data.label_key label"),
        ([LABEL], {"data__apply_chat_template": True}, "--data.apply_chat_template would render prompts again"),
        ([LABEL], {"data__input_template": "Human: {}"}, "--data.input_template would render prompts again"),
        ([LABEL], {"groups__config": "gone.yaml"}, "gone.yaml does not exist"),
        ([LABEL], {"groups__traits": ["short=conciseness"]}, "--groups.traits has no trait 'terse'"),
        ([LABEL], {"groups__traits": [*TRAITS, "x=./gone"]}, "--groups.traits x: ./gone is not a folder"),
        (
            [LABEL],
            {"groups__aggregate": "index", "groups__index": "minorty"},
            "is not a group; did you mean 'minority'",
        ),
        ([LABEL], {"groups__aggregate": "weighted", "groups__weights": ["1"]}, "gives 1 numbers for 2 groups"),
    ],
)
def test_what_a_run_with_gold_rewards_refuses(
    labels: list[Any], more: dict[str, Any], said: str, config: str, tmp_path: Path
) -> None:
    gold = {"kind": "gold", "config": config, "traits": TRAITS}
    check(arguments_of(tmp_path, [LABEL], gold))
    with pytest.raises(UserError, match=said):
        check(arguments_of(tmp_path, labels, gold, **more))


def test_prompts_for_evaluation_are_looked_at_too(config: str, tmp_path: Path) -> None:
    args = arguments_of(tmp_path, [LABEL], {"kind": "gold", "config": config, "traits": TRAITS})
    write_jsonl(tmp_path / "eval.jsonl", [{"prompt": PROMPT, "label": "7"}])
    args.eval.dataset = str(tmp_path / "eval.jsonl")
    with pytest.raises(UserError, match=r"eval.jsonl line 1 has a label"):
        check(args)


def test_models_and_run_must_agree(group_model: Path, reward_model: Path, config: str, tmp_path: Path) -> None:
    words = {"kind": "group_rm", "model": str(group_model), "config": config}
    check(arguments_of(tmp_path, [LABEL], words))
    three = tmp_path / "three.yaml"
    three.write_text(GROUPS.replace("0.9", "0.8") + "  - {name: rest, proportion: 0.1, weights: {short: 1.0}}\n")
    chat = with_heads(reward_model, tmp_path / "chat", HeadSettings(["a"], "independent", None, style="chat"))
    hh = with_heads(reward_model, tmp_path / "hh", HeadSettings(["b"], "independent", None, eos="none"))
    ensemble = {"kind": "ensemble"}
    for changed, said in (
        ({**words, "config": str(three)}, r"gives scores of 2 group\(s\).* has 3 group\(s\), minority, majority, rest"),
        ({**words, "model": str(reward_model)}, "--groups.model .*is not a reward model of groups"),
        ({**words, "model": str(tmp_path / "gone")}, "--groups.model .*gone is not a folder"),
        ({**words, "max_len": 600}, "--groups.max_len 600 is more than the 512 positions"),
        ({**ensemble, "models": (f"a={chat}",)}, "prompt of style hh, and the reward model.* is of style chat"),
        ({**ensemble, "models": (f"a={chat}", f"b={hh}")}, "prompts of different styles: .*chat, .*hh"),
        ({**ensemble, "models": (f"c={hh}",)}, r"is a reward model of 1 group\(s\), b"),
        ({**ensemble, "models": (f"b={hh}",), "eos": "append"}, "trained with eos none, not --groups.eos append"),
        ({**ensemble, "models": (f"minority={reward_model}",), "config": config}, "gives scores of 1 group"),
    ):
        with pytest.raises(UserError, match=said):
            check(arguments_of(tmp_path, [LABEL], changed))
    shutil.copy(reward_model / "model.safetensors", group_model)  # one score only
    with pytest.raises(UserError, match=r"has 1 scores among its weights and 2 groups in its config\.json"):
        check(arguments_of(tmp_path, [LABEL], words))


def test_gdpo_leaves_no_choice_of_how_groups_count(config: str, tmp_path: Path) -> None:
    gold = {"kind": "gold", "config": config, "traits": TRAITS}
    check(arguments_of(tmp_path, [LABEL], gold, ext__reward_combine="gdpo"))
    with pytest.raises(UserError, match=r"gdpo normalises each group's rewards apart, where --groups.aggregate index"):
        check(
            arguments_of(
                tmp_path, [LABEL], {**gold, "aggregate": "index", "index": "minority"}, ext__reward_combine="gdpo"
            )
        )


def test_labels_are_read_as_they_are_written() -> None:
    label = Label("hh-ä", "legacy")
    assert read_label(write_label(label), "x") == label
    with pytest.raises(UserError, match=r"sample 'train 1/1' has a label .*: it is int, not JSON text"):
        read_label(7, "sample 'train 1/1'")


def test_a_prompt_of_another_style_stops_a_run(group_model: Path) -> None:
    with pytest.raises(UserError, match=r"sample 'train 1/0' \(id 'b'\) has a prompt of style legacy"):
        run(Groups("group_rm", model=str(group_model)), batch_of(RESPONSES, write_label(Label("b", "legacy"))))


def test_batch_min_needs_its_reward_and_a_whole_batch(config: str, tmp_path: Path) -> None:
    made = extension("batch-min")
    gold = {"kind": "gold", "config": config, "traits": TRAITS, "aggregate": "batch-min"}
    on: dict[str, Any] = {"ext__use": ["batch-min"]}
    args = arguments_of(tmp_path, [LABEL], gold, **on)
    made.check(args)
    made.configure(args)
    assert args.ext.batch_min == {"groups": "groups", "weights": {"groups": 1.0}}
    for more, said in (
        ({"algo__dynamic_filtering_enable": True}, "--algo.dynamic_filtering_enable filters"),
        ({"train__async_enable": True}, "--train.async_enable trains on samples of earlier"),
        ({"ext__reward": []}, "needs one reward of groups"),
        ({"ext__reward": ["length"], "ext__reward_args": '{"length": {"target": 5}}'}, "needs one reward of groups"),
        ({"groups__aggregate": "min"}, "add --ext.reward groups --groups.aggregate batch-min"),
        ({"ext__reward_combine": "min"}, "--ext.reward_combine min needs the reward of each response"),
    ):
        with pytest.raises(UserError, match=said):
            made.check(arguments_of(tmp_path, [LABEL], gold, **on, **more))


@pytest.mark.parametrize(
    "words", [("groups.aggregate", "batch-min"), ("ext.reward_args", '{"groups": {"aggregate": "batch-min"}}')]
)
def test_batch_min_is_switched_on_by_its_reward(config: str, words: tuple[str, str]) -> None:
    from orlhf_ext.groups.batch_min import BatchMin
    from orlhf_ext.launch.flags import switched_on, with_needed

    gold = {"groups.kind": "gold", "groups.config": config, "groups.traits": list(TRAITS)}
    flags: dict[str, Any] = {"ext.reward_combine": "sum", "ext.reward_args": None, **gold}
    for more in ([], ["--ext.use", "batch-min"]):
        rest = ["--ext.reward", "groups", *more]
        on = with_needed(switched_on(rest), {**flags, words[0]: words[1]})
        assert [type(item) for item in on].count(BatchMin) == 1
    assert not any(isinstance(item, BatchMin) for item in with_needed(switched_on(["--ext.reward", "groups"]), flags))


def test_the_worst_group_is_that_of_the_whole_batch() -> None:
    """The example of the difference: response by response the reward would be [0, 0, .1]."""
    from orlhf_ext import backends

    backends.install()
    import torch
    from openrlhf.trainer.ppo_utils.experience import Experience

    from orlhf_ext.groups.experience import take_worst_group

    table, other = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.1]]), torch.tensor([1.0, 2.0, 3.0])

    def batch() -> list[Experience]:
        made = []
        for rows in (slice(0, 2), slice(2, 3)):
            info = {"groups/reward_a": table[rows, 0], "groups/reward_b": table[rows, 1]}
            info |= {"reward/groups": table[rows].mean(1), "reward/length": other[rows]}
            made.append(Experience(rewards=table[rows].mean(1), info={**info, "reward": table[rows].mean(1)}))
        return made

    experiences = batch()
    assert take_worst_group(experiences, "groups", {"groups": 1.0}) == "b"
    assert [e.rewards.tolist() for e in experiences] == [[0.0, 1.0], [pytest.approx(0.1)]]
    assert [e.info["reward"].tolist() for e in experiences] == [[0.0, 1.0], [pytest.approx(0.1)]]
    assert [e.info["groups/worst_a"].tolist() for e in experiences] == [[0.0, 0.0], [0.0]]
    assert [e.info["groups/worst_b"].tolist() for e in experiences] == [[1.0, 1.0], [1.0]]
    experiences = batch()
    take_worst_group(experiences, "groups", {"length": 0.5, "groups": 2.0})
    assert torch.cat([e.rewards for e in experiences]).tolist() == pytest.approx([0.5, 3.0, 1.7])


def test_extension_and_reward_import_nothing_heavy() -> None:
    code = (
        "import sys, orlhf_ext.groups.batch_min, orlhf_ext.groups.reward, orlhf_ext.groups.merge\n"
        "heavy = {'torch', 'transformers', 'ray', 'vllm', 'deepspeed', 'openrlhf'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_check_reward_runs_it_on_sample_data(group_model: Path, tmp_path: Path) -> None:
    """In a process that has installed no backend yet."""
    write_jsonl(tmp_path / "s.jsonl", [{"id": "a", "prompt": PROMPT, "completions": RESPONSES, "label": LABEL}])
    words = ("--groups.kind", "group_rm", "--groups.model", group_model, "--data", tmp_path / "s.jsonl")
    command = [sys.executable, "-m", "orlhf_ext", "check", "reward", "groups", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "ok    values" in done.stdout, done.stdout + done.stderr
