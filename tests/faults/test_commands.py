"""Commands that do not exist, and words that no command knows."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("check", "rewards"), "nothing to check is called 'rewards'; did you mean 'reward'"),
        (("build_data", "hhh"), "did you mean 'hh'"),
        (("build_data", "json:loads"), "json:loads is not a builder: it lacks name"),
        (("launch", "train_dp"), "unknown launcher 'train_dp'; did you mean 'train_dpo'"),
        (("launch", "train_dpo", "--ext.use", "exoo"), "'exoo'.*did you mean 'exo'"),
        (("launch", "train_dpo", "--ext.use", "exo", "--ext.use", "exo"), "exo is given twice"),
        (("launch", "train_rm", "--ext.use", "exo"), "works with train_dpo, not with train_rm"),
        (("launch", "train_dpo", "--exo.beta_pi", "1"), "belongs to the extension 'exo'; add --ext.use exo"),
        (("launch", "train_dpo", "--ext.use", "exo", "--exo.beta_p", "1"), "unknown flag --exo.beta_p; did you mean"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_unknown_words(fault, words: tuple[str, ...], says: str) -> None:
    fault(*words, says=says)
