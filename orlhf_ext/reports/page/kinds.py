"""How the page shows what each command that evaluates wrote: all that it knows of methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...files.records import Record
from . import results
from .charts import Figure

_HELD_OUT = "held-out prompts; ± standard error, [95 % interval over prompts]"


@dataclass(frozen=True)
class Kind:
    """One kind of summary.

    Attributes:
        title: of its results.
        figures: what draws those that all results of the kind share, in order.
        caption: what the table's numbers are; empty where the table says so itself.
        before: the name, among a record's answers, of what the others are compared with; by default, the first.
        scores: those of whose distributions there are plots; none: all that the answers have.
        units: the title of a score's axis, where its name alone does not say it.
        lower_is_better: of the scores.
        masked: texts are masked until the reader asks for them.
    """

    title: str
    figures: tuple[Callable[[results.Results], list[Figure]], ...]
    caption: str = ""
    before: str = ""
    scores: tuple[str, ...] = ()
    units: tuple[tuple[str, str], ...] = ()
    lower_is_better: bool = False
    masked: bool = False

    def unit(self, score: str) -> str:
        """The title of a score's axis."""
        return dict(self.units).get(score, score)

    def scores_of(self, records: Sequence[Record]) -> list[str]:
        """The names of the scores that are shown, in the order of their first places."""
        answers = (answer for record in records for answer in record["answers"].values())
        return list(self.scores or dict.fromkeys(key for answer in answers for key in answer["scores"]))

    def sides(self, records: Sequence[Record]) -> tuple[str, str]:
        """Which of the records' answers come first before and after; equal where there is one alone."""
        names = list(dict.fromkeys(name for record in records for name in record["answers"]))
        before = self.before if self.before in names else names[0]
        return before, next((name for name in reversed(names) if name != before), before)


KINDS = {
    "evaluate": Kind(
        "Policies against SFT",
        (results.reward_against_kl, results.gains),
        _HELD_OUT,
        before="SFT",
        scores=("reward",),
        units=(("reward", "reward (mean over a prompt's answers)"),),
    ),
    "groups.evaluate": Kind(
        "Groups",
        (results.group_scores, results.grid),
        f"{_HELD_OUT}; in win rates a tie counts ½, in strict ones 0",
        before="sft",
    ),
    "deadend.evaluate": Kind(
        "Toxicity of continuations",
        (results.frontier, results.toxicity_gains, results.q_calibration),
        "± deviation over prompts, [95 % interval over prompts]",
        scores=("max toxicity",),
        units=(("max toxicity", "largest toxicity of a prompt's continuations"),),
        lower_is_better=True,
        masked=True,
    ),
    "vrcli.evaluate": Kind(
        "Plans before and after training",
        (results.plans,),
        "held-out records; [95 % interval over records]",
        before="before",
        scores=("pct_improvement",),
        units=(("pct_improvement", "improvement of the gold text's perplexity (%)"),),
    ),
    "litbench.evaluate": Kind(
        "Accuracy on story pairs",
        (results.accuracy_by_length, results.margins),
        before="rejected",
        scores=("reward",),
        units=(("reward", "reward of a story"),),
    ),
    "judge.compare": Kind(
        "Preferred by a judge",
        (results.preferences,),
        before="before",
        scores=("points",),
        units=(("points", "share won against the other"),),
    ),
}
