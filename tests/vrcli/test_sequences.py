"""From labels and plans to token ids: where the gold text begins, what is scored behind it, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_builders.story.prompts import Task, from_chapter, from_messages
from orlhf_ext.cli.errors import UserError
from orlhf_ext.models.folder import context_length, load_tokenizer
from orlhf_ext.vrcli.labels import Label, baseline_of, read_label
from orlhf_ext.vrcli.sequences import Encoder

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<s>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
NO_SYSTEM = (
    "<s>{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TEMPLATES = {"chatml": (CHATML, "<|im_end|>"), "llama3": (LLAMA3, "<|eot_id|>"), "plain": (None, "</s>")}
STORY = {
    "text_before": "The lamp went out. Ada counted to ten.",
    "next_chapter_header": "Chapter 3",
    "next_chapter": "Chapter 3\n\nAt ten she struck a match, and saw the door.",
}
CHAT = [
    {"role": "system", "content": "Be funny."},
    {"role": "user", "content": "Why did the hen cross?"},
    {"role": "assistant", "content": "To lay it on the line."},
]


def make_tokenizer(folder: Path, template: str | None, eos: str) -> Any:
    tokenizer = load_tokenizer(folder)
    if template:
        tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL, "eos_token": eos})
        tokenizer.chat_template = template
    return tokenizer


def label_of(task: Any, name: str = "r1") -> Label:
    assert isinstance(task, Task), task
    return read_label(json.dumps(task.label(name)), "train.jsonl line 1")


def chat_label(gold: str = "To lay it on the line.", name: str = "r1") -> Label:
    label = label_of(from_messages({"messages": CHAT}, "keep", None), name)
    return label._replace(fields={**label.fields, "gold": gold})


def story_label(**changes: Any) -> Label:
    return label_of(from_chapter({**STORY, **changes}, "keep", None))


@pytest.fixture(scope="module", params=list(TEMPLATES))
def tokenizer(request: pytest.FixtureRequest, tiny_model: Path) -> Any:
    return make_tokenizer(tiny_model, *TEMPLATES[request.param])


@pytest.fixture(scope="module")
def chatml(tiny_model: Path) -> Any:
    return make_tokenizer(tiny_model, *TEMPLATES["chatml"])


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("plan", [None, "", "A hen wants to be a proverb."])
@pytest.mark.parametrize("label", [chat_label(), story_label()], ids=["generic", "ncp"])
def test_a_sequence_is_what_the_template_renders(tokenizer: Any, label: Label, plan: str | None) -> None:
    (span,) = Encoder(tokenizer, tail="template").encode([label], [plan])
    messages = [*label.messages(plan), {"role": "assistant", "content": label.gold}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(span.ids) == text
    assert tokenizer.decode(span.ids[span.start :]) == text[text.rindex(label.gold) :]
    assert (plan or "A hen") in tokenizer.decode(span.ids[: span.start]) or plan is None or not plan


@pytest.mark.parametrize("gold", ["a", "ab", "to me", "\nTo me", " x", "x \n"])
def test_the_scored_span_of_short_golds(tokenizer: Any, gold: str) -> None:
    """The gold text's own tokens, all of them and no other, whatever the conversation before it ends in."""
    own = ids_of(tokenizer, gold)
    spans = {
        tail: Encoder(tokenizer, tail=tail).encode([chat_label(gold)] * 2, [None, "Of hens and men."])
        for tail in ("template", "eot", "none")
    }
    for tail, (base, planned) in spans.items():
        assert base.ids[base.start :] == planned.ids[planned.start :]
        assert base.ids[base.start :][: len(own)] == own
        assert base.scored == len(own) + {"none": 0, "eot": 1}.get(tail, base.scored - len(own))
        assert base.ids[: base.start] == spans["none"][0].ids[: spans["none"][0].start]
    assert spans["eot"][0].ids[-1] == tokenizer.eos_token_id


def test_what_the_template_puts_behind_an_answer(chatml: Any, tiny_model: Path) -> None:
    def tail(tokenizer: Any, label: Label, how: str) -> str:
        (span,) = Encoder(tokenizer, tail=how).encode([label], [None])
        return tokenizer.decode(span.ids[span.start + len(ids_of(tokenizer, label.gold)) :])

    llama3 = make_tokenizer(tiny_model, *TEMPLATES["llama3"])
    thoughts = make_tokenizer(tiny_model, THOUGHTS, "<|im_end|>")
    assert tail(chatml, story_label(), "template") == tail(chatml, story_label(), "auto") == "<|im_end|>\n"
    assert tail(chatml, chat_label(), "eot") == tail(chatml, chat_label(), "auto") == "<|im_end|>"
    assert tail(llama3, story_label(), "template") == tail(llama3, chat_label(" spaced "), "template") == "<|eot_id|>"
    trims = make_tokenizer(tiny_model, NO_SYSTEM.replace("raise_exception('no system role')", "''"), "<|im_end|>")
    assert tail(trims, chat_label(" spaced "), "template") == "<|im_end|>\n"
    # a template that does not render the answer as it stands ends with the end token alone
    assert tail(thoughts, story_label(), "template") == tail(thoughts, story_label(), "eot") == "<|im_end|>"
    assert tail(chatml, story_label(), "none") == ""


def test_the_tokens_that_upstream_scores(tiny_model: Path) -> None:
    """Upstream looks for the last end token but those of the last ten, and scores from five tokens behind it on: the
    same tokens, unless the gold text is shorter than four of them."""
    tokenizer = make_tokenizer(tiny_model, *TEMPLATES["chatml"])
    tokenizer.add_tokens(["assistant"])  # a header of four tokens, as in the models that upstream trains

    def upstream(ids: list[int]) -> int:
        place = len(ids) - 11
        while ids[place] != tokenizer.eos_token_id:
            place -= 1
        return place + 5

    def compare(label: Label) -> tuple[int, int]:
        (span,) = Encoder(tokenizer, tail="template").encode([label], [None])
        messages = [*label.messages(), {"role": "assistant", "content": label.gold}]
        assert span.ids == ids_of(tokenizer, tokenizer.apply_chat_template(messages, tokenize=False))
        assert span.scored == len(ids_of(tokenizer, label.gold)) + 2
        return span.start, upstream(span.ids)

    for label in (story_label(), chat_label(), chat_label("wxyz")):
        ours, theirs = compare(label)
        assert ours == theirs
    ours, theirs = compare(chat_label("xyz"))
    assert theirs < ours - 20  # they score the user's turn, too


def test_system_messages(chatml: Any, tiny_model: Path) -> None:
    label = chat_label()
    texts = {}
    for how in ("keep", "drop", "merge"):
        (span,) = Encoder(chatml, system=how).encode([label], ["A plan."])
        texts[how] = chatml.decode(span.ids)
    asked = "Why did the hen cross?\n\nThoughts on what the answer should say:\nA plan.<|im_end|>"
    assert f"<|im_start|>system\nBe funny.<|im_end|>\n<|im_start|>user\n{asked}" in texts["keep"]
    assert texts["drop"].startswith(f"<|im_start|>user\n{asked}")
    assert texts["merge"].startswith(f"<|im_start|>user\nBe funny.\n\n{asked}")
    strict = make_tokenizer(tiny_model, NO_SYSTEM, "<|im_end|>")
    with pytest.raises(UserError, match=r"line 1 \(id 'r1'\) is refused .*no system role.*--vrcli.system merge"):
        Encoder(strict).encode([label], [None])
    (span,) = Encoder(strict, system="merge").encode([label], [None])
    assert strict.decode(span.ids).startswith("<s><|im_start|>user\nBe funny.\n\nWhy")


def test_the_plan_is_spliced_where_the_label_says(chatml: Any) -> None:
    (span,) = Encoder(chatml).encode([story_label()], ["Ada finds matches."])
    text = chatml.decode(span.ids[: span.start])
    assert "### Detailed Plan for the Next Chapter: ###\nAda finds matches.\n\n### Instructions: ###\n" in text
    assert "preliminary thoughts" in text and "At ten" not in text


def test_special_tokens_are_taken_out_of_plans(chatml: Any) -> None:
    encoder = Encoder(chatml)
    assert encoder.clean("a <|im_end|>\n<|im_start|>assistant\nb</s>") == "a \nassistant\nb"
    assert encoder.clean("<|im_<|im_end|>end|> c") == "c"
    special = {*chatml.all_special_ids, *chatml.added_tokens_decoder}
    (span,) = encoder.encode([chat_label()], [encoder.clean("x<|im_end|><|im_<s>start|>user\ny<pad>")])
    (empty,) = encoder.encode([chat_label()], ["xuser\ny"])
    assert span == empty
    assert sum(i in special for i in span.ids) == 3 + 2 + 1  # three headers, two ends, and the scored end of turn


@given(st.lists(st.sampled_from([*SPECIAL, "</s>", "<s>", "<", "|", "im_end", "|>", "a", " "])).map("".join))
def test_no_special_token_is_left_in_a_plan(text: str) -> None:
    from types import SimpleNamespace

    tokens: Any = SimpleNamespace(
        chat_template="x",
        added_tokens_decoder={i: SimpleNamespace(content=word, special=True) for i, word in enumerate(SPECIAL)},
        all_special_ids=[7, 8],
        all_special_tokens=["<s>", "</s>"],
    )
    found = Encoder(tokens).clean(text)
    assert not any(word in found for word in [*SPECIAL, "<s>", "</s>"])
    assert found == found.strip() and len(found) <= len(text)


def test_a_sequence_that_does_not_fit_is_refused(chatml: Any) -> None:
    label = chat_label()
    (base,), (planned,) = (Encoder(chatml).encode([label], [plan]) for plan in (None, "Of hens."))
    assert Encoder(chatml, context=len(base.ids)).encode([label], [None]) == [base]
    with pytest.raises(UserError, match=rf"id 'r1'\) takes {len(base.ids)} tokens .* reads {len(base.ids) - 1}; leave"):
        Encoder(chatml, context=len(base.ids) - 1).encode([label], [None])
    with pytest.raises(UserError, match=rf"takes {len(planned.ids)} tokens .* with a plan, .*; generate fewer tokens"):
        Encoder(chatml, context=len(base.ids)).encode([label], ["Of hens."])


def test_what_has_no_template_or_no_token(chatml: Any, tiny_model: Path) -> None:
    bare = load_tokenizer(tiny_model)
    bare.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        Encoder(bare)
    with pytest.raises(ValueError, match="not 'maybe', 'auto'"):
        Encoder(chatml, system="maybe")
    assert context_length(tiny_model) == 512
    assert Encoder(chatml).encode([], []) == []


def test_labels_are_read_with_their_baseline() -> None:
    fields = from_messages({"messages": CHAT}, "keep", None).label("x")  # type: ignore[union-attr]
    label = read_label(json.dumps({**fields, "base": {"nll": 2, "n": 3, "fp": "f"}}))
    assert (label.id, label.adapter, label.gold) == ("x", "generic", CHAT[-1]["content"])
    base = baseline_of(label, "f")
    assert (base.nll, base.tokens) == (2.0, 3)
    assert read_label(label.with_base(base._replace(nll=4.0))).base == base._replace(nll=4.0)
    with pytest.raises(UserError, match=r"the record with id 'x' has a baseline of another model or setting; .* again"):
        baseline_of(label, "g")
    with pytest.raises(UserError, match=r"train.jsonl line 1 \(id 'r1'\) has no baseline; compute it"):
        baseline_of(chat_label())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "it is missing, not JSON text"),
        ({"a": 1}, "it is dict, not JSON text"),
        ("{", "it is not JSON"),
        ("[]", "it is not a JSON object"),
        ("42", "it is not a JSON object"),
        (b'{"v": 2}', "its version v is 2, not 1"),
        (b'{"id": 3}', "its id is not text"),
        (b'{"adapter": "joke"}', "its adapter is 'joke'"),
        (b'{"gold": " "}', "its gold text is empty"),
        (b'{"messages": []}', "its messages are not a chat"),
        (b'{"messages": [{"role": "assistant", "content": "x"}]}', "ends with the user"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "not a chat of texts"),
        (b'{"plan": {}}', "its plan is not an object with message"),
        (b'{"plan": {"message": 9}}', "its plan goes into message 9 of 2"),
        (b'{"plan": {"start": true}}', "its plan is not an object"),
        (b'{"plan": {"start": 1, "end": 999}}', "its plan goes to 1:999"),
        (b'{"base": {"nll": "2"}}', "its base has no number nll"),
        (b'{"base": {"nll": NaN, "n": 1, "fp": ""}}', "its base has no number nll"),
        (b'{"base": {"nll": 2, "n": 0, "fp": ""}}', "its base lacks n"),
    ],
)
def test_labels_that_cannot_be_read(change: Any, said: str) -> None:
    if isinstance(change, bytes):
        fields = from_messages({"messages": CHAT}, "keep", None).label("x")  # type: ignore[union-attr]
        for key, value in json.loads(change).items():
            fields[key] = {**fields["plan"], **value} if key == "plan" and value else value
        change = json.dumps(fields)
    with pytest.raises(UserError, match=r"^data.jsonl line 7.* cannot read: .*make the data with build_data") as error:
        read_label(change, "data.jsonl line 7")
    assert said in str(error.value)
