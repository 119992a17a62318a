"""A DeepSpeed checkpoint as a model folder: what a real training wrote, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import failing, run_python, write
from hub_server import TOKEN, contents, hub

pytest.importorskip("deepspeed")

from orlhf_ext.cli.errors import UserError
from orlhf_ext.commands.export import fill, find_checkpoint, main


def make_checkpoint(folder: Path, *tags: str, latest: str | None = None) -> Path:
    """Folders as DeepSpeed names them, with files that are none of its."""
    for tag in tags:
        (folder / tag).mkdir(parents=True)
        (folder / tag / "mp_rank_00_model_states.pt").write_bytes(b"torn")
    if latest:
        (folder / "latest").write_text(f"{latest}\n")
    return folder


# ---- finding one


def test_the_latest_one_is_found_from_every_folder(tmp_path: Path):
    folder = make_checkpoint(
        tmp_path / "_actor", "global_step2", "best_global_step2", "global_step10", latest="global_step10"
    )
    for given in (tmp_path, folder, folder / "global_step10"):
        assert find_checkpoint(str(given)) == (folder, "global_step10")
    assert find_checkpoint(str(tmp_path), "best_global_step2") == (folder, "best_global_step2")


def test_what_is_not_there_is_named(tmp_path: Path):
    folder = make_checkpoint(tmp_path / "some", "global_step10", "global_step2", latest="global_step4")
    for words, wanted in (
        ((tmp_path / "absent",), ["absent has no DeepSpeed checkpoint", "--ckpt.path"]),
        ((folder, "--tag", "global_step3"), ["no checkpoint --tag global_step3", "global_step2, global_step10"]),
        ((folder,), ["does not say which checkpoint is the latest", "global_step2, global_step10"]),
        ((folder / "global_step2", "--tag", "global_step2"), ["leave --tag out"]),
    ):
        with pytest.raises(UserError) as told:
            find_checkpoint(str(words[0]), str(words[2]) if len(words) > 1 else None)
        assert all(word in str(told.value) for word in wanted), told.value


def test_mistakes_are_told_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    folder = make_checkpoint(tmp_path / "some", "global_step2", latest="global_step2")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))

    def told(*words: object, out: str = "out") -> str:
        return failing(capsys, main, folder, "--model", tmp_path / "absent", "--out", tmp_path / out, *words)

    assert "absent is not a folder" in told()
    assert "some exists; remove it" in told(out="some")
    assert "--public has no effect" in told("--public")
    assert "--push_to_hub a//b is not a repository's name" in told("--push_to_hub", "a//b")
    assert "--push_to_hub needs a token" in told("--push_to_hub", "me/model")


def test_a_checkpoint_that_was_cut_short_is_told(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture):
    folder = make_checkpoint(tmp_path / "some", "global_step2", latest="global_step2")
    told = failing(capsys, main, folder, "--model", tiny_model, "--out", tmp_path / "out")
    assert f"{folder}/global_step2 is not a whole ZeRO checkpoint" in told and "--tag" in told
    assert [path.name for path in tmp_path.iterdir()] == ["some"]


# ---- fitting


@pytest.fixture
def model(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model)


NORM, EMBEDDINGS, HEAD = "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"


def test_weights_must_fit_the_model(model: Any):
    good = {name: tensor.float() + 1 for name, tensor in model.state_dict().items()}
    for change, reason in (
        ({NORM: None}, f"{NORM} is missing"),
        ({HEAD: None}, f"{HEAD} is missing"),
        ({NORM: good[NORM][:-1]}, f"{NORM} is (127,), and (128,) in the model"),
        ({"score.weight": good[NORM]}, "score.weight is none of the model's"),
        ({"base_model.model.lora_A.weight": good[NORM]}, "is of a LoRA training"),
    ):
        weights = {name: tensor for name, tensor in {**good, **change}.items() if tensor is not None}
        with pytest.raises(UserError, match="global_step2") as told:
            fill(model, weights, "global_step2", "start")
        assert reason in str(told.value)
    fill(model, good, "global_step2", "start")
    assert all((tensor == good[name].to(tensor.dtype)).all() for name, tensor in model.state_dict().items())


def test_a_tied_weight_may_stand_under_one_name(model: Any):
    model.lm_head.weight = model.model.embed_tokens.weight
    weights = {name: tensor.float() + 1 for name, tensor in model.state_dict().items() if name != HEAD}
    fill(model, weights, "global_step2", "start")
    assert (model.lm_head.weight == weights[EMBEDDINGS].to(model.dtype)).all()


# ---- from a real training


def tie(tiny_model: Path, out: Path) -> Path:
    """A tiny random model with one matrix for input and output, as small models of the hub have it."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(out)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(out)
    return out


def tensors(folder: Path) -> dict[str, Any]:
    """A model's weights; tied embeddings count once, and OpenRLHF saves them under both names."""
    from safetensors.torch import load_file

    found = load_file(folder / "model.safetensors")
    if HEAD in found and (found[HEAD] == found[EMBEDDINGS]).all():
        del found[HEAD]
    return found


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return set(one) == set(other) and all(one[n].dtype == other[n].dtype and (one[n] == other[n]).all() for n in one)


@pytest.mark.slow
@pytest.mark.launcher
@pytest.mark.parametrize(("stage", "tied"), [(2, True), (3, False)])
def test_what_comes_out_is_what_the_run_saved_at_that_step(tmp_path: Path, tiny_model: Path, stage: int, tied: bool):
    start = tie(tiny_model, tmp_path / "start") if tied else tiny_model
    rows = [{"prompt": f"\n\nHuman: {i}?\n\nAssistant:", "answer": f" {i + 1}"} for i in range(16)]
    checkpoints = tmp_path / "checkpoints"
    trained = run_python(
        "-m", "orlhf_ext.launch", "train_sft", "--model.model_name_or_path", str(start),
        "--data.dataset", str(write(tmp_path / "rows.jsonl", rows)), "--data.input_key", "prompt",
        "--data.output_key", "answer", "--data.max_len", "64", "--train.batch_size", "4",
        "--train.micro_batch_size", "2", "--train.max_epochs", "1", "--adam.lr", "1e-3",
        "--ds.zero_stage", str(stage), "--ckpt.output_dir", str(tmp_path / "model"),
        "--ckpt.path", str(checkpoints), "--ckpt.save_steps", "2", "--ckpt.save_hf",
        HF_DATASETS_CACHE=str(tmp_path / "datasets"),
    )  # fmt: skip
    assert trained.returncode == 0, trained.stdout[-2000:] + trained.stderr[-2000:]

    def export(name: str, *words: str, status: int = 0, **environment: str) -> str:
        done = run_python(
            "-m", "orlhf_ext", "export", str(checkpoints), "--model", str(start), "--out", str(tmp_path / name), *words,
            **environment,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    export("latest")
    export("second", "--tag", "global_step2")
    latest, second = tensors(tmp_path / "latest"), tensors(tmp_path / "second")
    assert equal(latest, tensors(checkpoints / "global_step4_hf")) and equal(latest, tensors(tmp_path / "model"))
    assert equal(second, tensors(checkpoints / "global_step2_hf")) and not equal(latest, second)
    assert (HEAD in latest) != tied

    words = ("--dtype", "float32", "--push_to_hub", "me/model")
    with hub() as server:
        pushed = export("wide", *words, **server.environment)
        assert f"pushed to {server.url}/me/model" in pushed and server.repositories["me/model"].private
        assert server.repositories["me/model"].files == contents(tmp_path / "wide")
        server.repositories["me/model"].private = False
        told = export("again", *words, status=2, **server.environment)
        assert "me/model is public already" in told and TOKEN not in pushed + told
    wide = tensors(tmp_path / "wide")
    assert equal({name: tensor.bfloat16() for name, tensor in wide.items()}, latest)
    assert any((tensor != latest[name].float()).any() for name, tensor in wide.items())

    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoModelForCausalLM.from_pretrained(tmp_path / "latest").dtype == tensors(tmp_path / "model")[NORM].dtype
    assert AutoTokenizer.from_pretrained(tmp_path / "latest").chat_template
