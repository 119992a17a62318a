"""``build_data litbench rationales``: judging inputs and answers, checked by token through OpenRLHF's own data set."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import build_light, failing, meta, read, write
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from data_builders.litbench.fit import cut
from data_builders.litbench.rationales import primary
from orlhf_ext.build_data import main
from orlhf_ext.litbench.evaluate import read_orders
from orlhf_ext.litbench.prompts import TEMPLATES, answer, exchange, fill, judging_input, marked
from orlhf_ext.models.texts import read_prompts, read_samples

MOST = 700
LONG = "The tide went out and did not come back. Nobody on the island said so. " * 30


def row(number: int, **change: Any) -> dict[str, Any]:
    """A row as LitBench-Rationales has it."""
    label = "AB"[number % 3 == 0]
    other = "AB"[label == "A"]
    return {
        "prompt": f"[WP] A tale of {number}",
        "story_a": f"The first tale of {number} begins and ends at sea.",
        "story_b": f"The second tale of {number}, in which somebody waits.",
        "chosen_story": label,
        "rationale": f"Story {label} is bolder. A quiet end does not save Story {other}.",
    } | change


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [row(number) for number in range(start, start + count)]


def build(*words: object) -> None:
    main(["litbench", "rationales", *map(str, words)])


@pytest.fixture
def data(tmp_path: Path) -> list[object]:
    """A source of 40 rows with a test file of 6, and the folder for what is made of them."""
    held = write(tmp_path / "held.jsonl", rows(6, 1000))
    return [write(tmp_path / "x.jsonl", rows(40)), "--test_file", held, "--out", tmp_path / "out"]


def parts(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {split: read(folder / f"rationales_{split}.jsonl") for split in ("train", "val", "test")}


# --- wording ---------------------------------------------------------------------------------------------------------


def test_golden_inputs():
    before = (
        "Below are two stories that answer the same writing prompt. Decide which one is the better piece of creative "
        "writing. Weigh five aspects: originality, imagery, emotional impact, coherence, and technical skill."
    )
    assert judging_input(" One.\n", "Two.") == (
        f"{before}\n\nStory A:\nOne.\n\nStory B:\nTwo.\n\n"
        "Answer with this one line and nothing else:\nPreferred: [A or B]"
    )
    assert marked(judging_input("One.", "Two.", "A war {} ends.", reasons=True)) == (
        f"{before}\n\nWriting prompt:\nA war {{}} ends.\n\nStory A:\nOne.\n\nStory B:\nTwo.\n\n"
        "Answer in this form, and stop after the second line:\nReasoning: [what decides it]\nPreferred: [A or B]"
        "\n\n### Assistant:"
    )
    popular = judging_input("One.", "Two.", template="popularity")
    assert popular.startswith(TEMPLATES["popularity"].before + "\n\nStory A:\nOne.") and "upvotes" in popular
    assert popular.index("Two.") < popular.index("What counts is the choice") < popular.index("Preferred: [A or B]")


def test_golden_answers():
    assert answer("A") == "Preferred: A"
    assert answer("B", " It sings.\n") == "Reasoning: It sings.\nPreferred: B"
    assert answer("B", "reasoning: It sings.") == "reasoning: It sings.\nPreferred: B"
    assert fill("{chosen} sings {rejected} out {loud}.", "B") == "Story B sings Story A out {loud}."


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Story A sings. Story B does not.", "Story B sings. Story A does not."),
        ("story A's end (response **B**) is 'Story A'", "story B's end (response **A**) is 'Story B'"),
        ("A quiet end lifts Story B.", "A quiet end lifts Story A."),
        ("So be it.\n- A bold end. Story B", "So be it.\n- A bold end. Story A"),
        ("It is good.", "It is good."),
        ("A is better than Story B.", None),
        ("Story B sings, but A shows more.", None),
        ("A shows more than Story B.", None),
        ("Story B tries; A and nobody else wins.", None),
        ("Stories A and B are both fine.", None),
        ("Both. B wins. Story A", None),
        ("Story A wins.\nPreferred: A", None),
    ],
)
def test_exchange(text: str, expected: str | None):
    assert exchange(text) == expected
    if expected:
        assert exchange(expected) == text


@given(st.lists(st.sampled_from(["Story A", "Story B", "A ", "B", "is", "a tale", ". ", "\n", " ", "s"])).map("".join))
def test_an_exchange_undoes_itself(text: str):
    swapped = exchange(text)
    assert swapped is None or (exchange(swapped) == text and len(swapped) == len(text))


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows(tmp_path: Path, data: list[object]):
    build(*data)
    found = parts(tmp_path / "out")
    assert {split: len(some) for split, some in found.items()} == {"train": 38, "val": 2, "test": 12}
    for one in found["train"] + found["val"]:
        assert list(one) == ["id", "prompt", "completion", "label"]
        number = int(one["prompt"].split("tale of ")[1].split()[0])
        source = row(number)
        assert one["prompt"] == marked(judging_input(source["story_a"], source["story_b"])) + "\n"
        assert one["label"] == source["chosen_story"] and one["completion"] == f"Preferred: {one['label']}"
    sidecar = meta(tmp_path / "out" / "rationales_train.jsonl")
    assert sidecar["style"] == "marker" and sidecar["rows_with_cut_stories"] == 0
    assert sidecar["answer_ends_with"].startswith("what SFTDataset appends") and "licence" in sidecar


def test_test_rows_have_both_orders(tmp_path: Path, data: list[object]):
    build(*data)
    found = parts(tmp_path / "out")["test"]
    assert [one["pair"] for one in found[::2]] == [one["pair"] for one in found[1::2]]
    for one, number in zip(found[::2], range(1000, 1006), strict=True):
        source = row(number)
        chosen, rejected = (source[f"story_{side}"] for side in ("ab" if source["chosen_story"] == "A" else "ba"))
        assert one == {
            "id": f"{one['pair']}/AB",
            "pair": one["pair"],
            "prompt": marked(judging_input(chosen, rejected)) + "\n",
            "label": "A",
            "primary": primary(0, one["pair"]) == "A",
            "words": [len(chosen.split()), len(rejected.split())],
            "completions": ["Preferred: A", "Preferred: B"],
        }
    for one, two in zip(found[::2], found[1::2], strict=True):
        assert two["label"] == "B" and two["id"] == f"{one['pair']}/BA" and two["words"] == one["words"][::-1]
        assert one["primary"] + two["primary"] == 1
    ids = [f"pair {number}" for number in range(1000)]
    assert 430 < sum(primary(0, name) == "A" for name in ids) < 570
    assert 430 < sum(primary(0, name) == primary(1, name) for name in ids) < 570


def test_reasons_and_both_orders(tmp_path: Path, data: list[object]):
    change = [
        row(50, rationale=None),
        row(51, chosen_story="A", rationale="Story A wins. B does not."),
        row(52, chosen_story="B", preferred=" A "),
    ]
    write(tmp_path / "x.jsonl", rows(40) + change)
    build(*data, "--use_cot", "--swap_augment")
    found = parts(tmp_path / "out")
    sidecar = meta(tmp_path / "out" / "rationales_train.jsonl")
    assert sidecar["counts"]["dropped"] == {"no rationale": 1}
    assert len(found["val"]) == 3 and len(found["train"]) == sidecar["rows"] == 2 * 39 - 1
    assert sidecar["swapped_rows_left_out"] == 1 and sidecar["counts"]["kept"] == 39
    by_pair: dict[str, list[dict[str, Any]]] = {}
    for one in found["train"]:
        by_pair.setdefault(one["id"].split("/")[0], []).append(one)
        assert one["completion"].startswith("Reasoning: Story ") and one["completion"].endswith(one["label"])
        wins = one["completion"].removeprefix("Reasoning: Story ")[0]
        assert one["label"] == wins and one["id"].endswith("/AB" if wins == "A" else "/BA")
    assert sorted(map(len, by_pair.values())) == [1] + [2] * 38
    both = next(some for some in by_pair.values() if len(some) == 2)
    assert "A quiet end" in both[0]["completion"] and "A quiet end" in both[1]["completion"]
    build(*data, "--swap_augment")  # the verdict alone can always be swapped, and needs no rationale
    sidecar = meta(tmp_path / "out" / "rationales_train.jsonl")
    assert sidecar["rows"] == 2 * sidecar["counts"]["kept"] and not sidecar["counts"]["dropped"]


def test_rows_without_a_label_are_ordered_by_a_hash(tmp_path: Path, data: list[object]):
    some = [
        {"prompt": f"p{n}", "chosen_story": f"good {n}", "rejected_story": f"bad {n}", "rationale": "{chosen} wins."}
        for n in range(60)
    ]
    some.append({**some[0], "prompt": "q", "rationale": "Story A wins."})
    write(tmp_path / "x.jsonl", some)
    build(*data, "--use_cot", "--show_prompt")
    found = parts(tmp_path / "out")
    sidecar = meta(tmp_path / "out" / "rationales_train.jsonl")
    assert list(sidecar["counts"]["dropped"].values()) == [1]
    for one in found["train"]:
        pair, label = one["id"].split("/")[0], one["label"]
        assert label == primary(0, pair) and one["completion"] == f"Reasoning: Story {label} wins.\nPreferred: {label}"
        assert f"Story {label}:\ngood" in one["prompt"] and "Writing prompt:\np" in one["prompt"]
    assert 15 < sum(one["label"] == "A" for one in found["train"]) < 42
    write(tmp_path / "x.jsonl", some[::-1])
    build(*data, "--use_cot", "--show_prompt")
    again = parts(tmp_path / "out")
    assert all({one["id"]: one for one in found[split]} == {one["id"]: one for one in again[split]} for split in found)


def test_labels_must_be_a_or_b(tmp_path: Path, data: list[object]):
    write(
        tmp_path / "x.jsonl", [*rows(30), row(40, chosen_story="a"), row(41, chosen_story=None), row(42, preferred="C")]
    )
    build(*data)
    assert meta(tmp_path / "out" / "rationales_train.jsonl")["counts"]["dropped"] == {"no label A or B": 3}


def test_the_sample(tmp_path: Path):
    build_light(["litbench", "rationales", "sample", "--use_cot", "--swap_augment", "--out", str(tmp_path)])
    found = parts(tmp_path)
    assert len(found["train"]) > 100 and len(found["test"]) >= 40 and found["val"]
    for one in found["train"]:
        assert "{chosen}" not in one["completion"] and "{rejected}" not in one["completion"]
        assert one["completion"].startswith("Reasoning: ") and one["completion"].endswith(
            f"\nPreferred: {one['label']}"
        )
    main(["litbench", "pairs", "sample", "--out", str(tmp_path)])
    assert {one["id"] for one in read(tmp_path / "pairs_test.jsonl")} == {one["pair"] for one in found["test"]}
    # what the commands that come next make of it
    file = tmp_path / "rationales_test.jsonl"
    assert len(read_orders(str(file))) * 2 == len(read_prompts(file)) == len(read_samples(file)) == len(found["test"])


# --- by token --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's tokenizer."""
    pytest.importorskip("gguf", reason="no gguf to read SmolLM2's tokenizer with")
    pytest.importorskip("transformers", reason="no transformers")
    from orlhf_ext.models.small_models import _gguf_tokenizer, find_smollm2_gguf

    folder = tmp_path_factory.mktemp("models") / "smollm2"
    _gguf_tokenizer(find_smollm2_gguf())[0].save_pretrained(folder)
    return folder


def trained(folder: Path, file: Path, style: str, max_len: int) -> list[tuple[str, list[str], str]]:
    """What OpenRLHF trains of each row: the text that is masked, the tokens with a loss, and all of the text."""
    from datasets import Dataset
    from openrlhf.datasets import SFTDataset

    from orlhf_ext.models.folder import load_tokenizer

    tokenizer = load_tokenizer(folder)
    flags = SimpleNamespace(input_key="prompt", output_key="completion", apply_chat_template=style == "chat")
    some = Dataset.from_list(read(file))
    strategy = SimpleNamespace(args=SimpleNamespace(data=flags))
    dataset = SFTDataset(some, tokenizer, max_len, strategy, input_template="{}", num_processors=None)
    assert len(dataset) == len(some)
    found = []
    for place in range(len(dataset)):
        ids, _, mask = dataset[place]
        lost = mask[0].roll(1).bool()  # the loss at a place is that of the next token
        masked = tokenizer.decode(ids[0][~lost])
        found.append((masked, [tokenizer.decode([token]) for token in ids[0][lost]], tokenizer.decode(ids[0])))
    return found


@pytest.mark.parametrize("style", ["marker", "chat"])
@pytest.mark.parametrize("reasons", [False, True], ids=["direct", "reasons"])
@pytest.mark.parametrize("model", ["tiny_model", pytest.param("smollm2", marks=pytest.mark.slow)])
def test_only_the_answer_is_trained(
    request: pytest.FixtureRequest, tmp_path: Path, data: list[object], model: str, reasons: bool, style: str
):
    pytest.importorskip("openrlhf", reason="no OpenRLHF to load the rows with", exc_type=ImportError)
    folder = request.getfixturevalue(model)
    write(tmp_path / "x.jsonl", [*rows(30), row(60, story_a=LONG, story_b=LONG.upper()), row(61, story_b=LONG)])
    words = ("--tokenizer", folder, "--style", style, "--max_len", MOST, *(["--use_cot"] if reasons else []))
    build(*data, *words)
    file = tmp_path / "out" / "rationales_train.jsonl"
    eos = {"tiny_model": "</s>", "smollm2": "<|im_end|>"}[model]
    found = trained(folder, file, style, MOST)
    for one, (masked, loss, whole) in zip(read(file), found, strict=True):
        said = one["completion"].removesuffix(eos)
        assert "".join(loss) == said + eos and loss[-1] == eos and loss[-2].strip() == one["label"]
        assert whole == masked + said + eos and one["prompt"] in masked
        assert masked.endswith(
            "### Assistant:\n" if style == "marker" else "ssistant\n" if model == "smollm2" else ": "
        )
        assert "Preferred: [A or B]" in masked and (style == "chat") == (eos not in one["completion"])
    sidecar = meta(file)
    assert sidecar["counts"]["dropped"] == {} and sidecar["rows_with_cut_stories"] in (1, 2)
    assert sidecar["answer_ends_with"].startswith(eos)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    longest = max(len(tokenizer.encode(masked).ids) for masked, _, _ in found)
    assert MOST - 60 < longest + (MOST // 4 if reasons else 8) <= MOST


def test_stories_are_cut_alike(tmp_path: Path, tiny_model: Path, data: list[object]):
    words = LONG.upper()
    held = [row(1, story_a=LONG, story_b=words), row(2, story_a=LONG), row(3), row(4, prompt=LONG * 3)]
    write(tmp_path / "held.jsonl", held)
    build(*data, "--tokenizer", tiny_model, "--max_len", 620, "--answer_tokens", 20)
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    found = parts(tmp_path / "out")["test"]
    assert [len(tokenizer.encode(one["prompt"]).ids) <= 600 for one in found] == [True] * 8
    shown = [[part.split("\n\n")[0] for part in one["prompt"].split(":\n")[1:3]] for one in found]
    for ab, ba in zip(shown[::2], shown[1::2], strict=True):
        assert ab == ba[::-1]
    long_a, long_b = shown[0] if held[0]["chosen_story"] == "A" else shown[1]
    assert LONG.startswith(long_a) and words.startswith(long_b) and len(long_a) > 60
    sizes = [len(tokenizer.encode(text).ids) for text in (long_a, long_b)]
    assert abs(sizes[0] - sizes[1]) <= 12  # a halved word is left out
    assert row(2)["story_b"] in shown[2] and shown[4] in (shown[5][::-1],)  # the shorter one is whole
    assert max(map(len, shown[2])) > len(long_a)
    assert found[0]["words"] == [len(LONG.split())] * 2  # of the whole stories
    sidecar = meta(tmp_path / "out" / "rationales_test.jsonl")
    assert sidecar["rows_with_cut_stories"] == 4 and "answer_tokens" in sidecar["arguments"]


def test_what_cannot_fit_is_dropped(tmp_path: Path, tiny_model: Path, data: list[object]):
    many = [row(70, rationale="It is so good. " * 200), row(71, prompt="Again? " * 300)]
    write(tmp_path / "x.jsonl", rows(30) + many)
    words = ("--tokenizer", tiny_model, "--max_len", MOST, "--answer_tokens", 40)
    for more in (["--use_cot"], ["--show_prompt"]):
        build(*data, *words, *more)
        counts = [meta(tmp_path / "out" / f"rationales_{split}.jsonl")["counts"] for split in ("train", "val")]
        assert sum(sum(some["dropped"].values()) for some in counts) == 1 and sum(some["kept"] for some in counts) == 31
        assert {"longer than --max_len, even with its stories cut"} == set().union(
            *(some["dropped"] for some in counts)
        )


def join(folder: Path, *pieces: str) -> Path:
    """A tokenizer of bytes that has some longer tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {letter: place for place, letter in enumerate(alphabet)}
    merges = []
    for piece in pieces:
        (word, _), *_ = to_bytes.pre_tokenize_str(piece)
        for end in range(2, len(word) + 1):
            merges.append((word[: end - 1], word[end - 1]))
            vocabulary.setdefault(word[:end], len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = to_bytes
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<end>"}}))
    return folder


def test_no_token_reaches_over_the_end_of_an_input(tmp_path: Path, data: list[object], capsys: pytest.CaptureFixture):
    build(*data, "--tokenizer", join(tmp_path / "plain", ":\n"))
    assert parts(tmp_path / "out")["train"][0]["completion"] in ("Preferred: A<end>", "Preferred: B<end>")
    # the line break and the answer's first letter are one token: the break goes to the answer
    build(*data, "--tokenizer", join(tmp_path / "mended", "\nP"))
    one, two = parts(tmp_path / "out")["train"][0], parts(tmp_path / "out")["test"][0]
    assert one["prompt"].endswith("### Assistant:") and one["completion"][:-5] in ("\nPreferred: A", "\nPreferred: B")
    assert two["prompt"].endswith("### Assistant:") and two["completions"] == ["\nPreferred: A", "\nPreferred: B"]
    assert meta(tmp_path / "out" / "rationales_test.jsonl")["marker_line_break"] == "in the answer"
    said = failing(capsys, main, "litbench", "rationales", *data, "--tokenizer", join(tmp_path / "no", ":\nP"))
    assert "makes one token of an input's end and its answer's beginning" in said and said.count("\n") == 1


def test_a_chat_template_that_rewrites_the_turn(tmp_path: Path, data: list[object], capsys: pytest.CaptureFixture):
    folder = join(tmp_path / "m")
    words = ["litbench", "rationales", *data, "--style", "chat", "--tokenizer", folder]
    assert "has no chat template" in failing(capsys, main, *words)
    template = folder / "chat_template.jinja"
    template.write_text(
        "{% for m in messages %}<{{ m.content }}>{% endfor %}{% if add_generation_prompt %}?{% endif %}"
    )
    said = failing(capsys, main, *words)
    assert "tokens of the input that do not begin those of input and answer" in said
    template.write_text("{% for m in messages %}<{{ m.content }}{% endfor %}{% if add_generation_prompt %}<{% endif %}")
    main([str(word) for word in words])
    found = meta(tmp_path / "out" / "rationales_train.jsonl")
    assert found["answer_ends_with"] == "what SFTDataset appends: a space and the end token"


@given(st.text(alphabet="ab \n", max_size=60), st.integers(1, 30))
def test_a_cut_story_begins_the_story(text: str, most: int):
    text = text.strip()
    short = cut(text, range(1, len(text) + 1), most)
    assert text.startswith(short) and len(short) <= max(most, 0) and short == short.rstrip()
    if len(text) > most and " " in text[:most]:
        assert text[len(short) :][:1].isspace()


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--max_len", "200"], "--max_len has no effect without --tokenizer"),
        (["--answer_tokens", "200"], "--answer_tokens has no effect without --max_len"),
        (["--val_pairs", "3"], "unrecognized arguments: --val_pairs 3"),
        (["--tokenizer", "no/such/folder"], "does not exist; give a folder with a tokenizer.json"),
        (["--use_cot"], "none of the 40 rows of"),
    ],
)
def test_one_sentence(
    tmp_path: Path, data: list[object], capsys: pytest.CaptureFixture, words: list[str], expected: str
):
    write(tmp_path / "x.jsonl", [{**one, "rationale": " "} for one in rows(40)])
    said = failing(capsys, main, "litbench", "rationales", *data, *words)
    assert expected in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_split_is_upstreams_share(tmp_path: Path, data: list[object]):
    for count, share, val in ((41, 0.05, 3), (40, 0.05, 2), (40, 0.26, 11)):
        write(tmp_path / "x.jsonl", rows(count))
        build(*data, "--val_share", share)
        found = parts(tmp_path / "out")
        assert (len(found["val"]), len(found["train"])) == (val, count - val)
