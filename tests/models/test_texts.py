"""Token ids of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orlhf_ext.models.folder import load_tokenizer
from orlhf_ext.models.texts import encode


def test_a_text_that_is_there_twice_is_tokenised_once(tiny_model: Path) -> None:
    tokenizer, asked = load_tokenizer(tiny_model), []

    def counted(texts: list[str], **how: Any) -> Any:
        asked.append(list(texts))
        return tokenizer(texts, **how)

    texts = ["how are you?", " fine", "how are you?", "", "how are you?"]
    found = encode(counted, texts)  # type: ignore[arg-type]
    assert asked == [["how are you?", " fine", ""]]
    assert found == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    found[0].append(0)
    assert found[2] == found[4] != found[0], "one list for two texts"
    assert encode(counted, []) == [] and len(asked) == 1  # type: ignore[arg-type]
