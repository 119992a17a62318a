"""Rectified decoding in vLLM: a logits processor that reads Q_D beside the language model, for both model runners.

    LLM(MODEL, logits_processors=["orlhf_ext.deadend.vllm:RectifiedDecoding"],
        additional_config={"deadend": {"model": Q_D_FOLDER, "epsilon": 0.1}})

``deadend`` takes ``model`` and, if wanted, ``epsilon`` (0.0), ``passes`` (2, or null for the limit), ``p_min`` (1e-7),
``infeasible`` ("normalize" or "fallback"), ``top_k`` (50, of "fallback") and ``dtype`` (float32, of Q_D). A request may
ask for another epsilon, or for none: ``SamplingParams(extra_args={"deadend_epsilon": 0.3})``, or ``"off"``.

The processor runs after ``min_tokens`` and before temperature, top-k and top-p. Q_D is on the engine's device, in
the memory that ``gpu_memory_utilization`` leaves free, which vLLM does not measure; a line says where that may be too
little for ``max_num_seqs`` sequences of ``max_model_len`` tokens.

The first runner (vLLM up to 0.30, and later ones where Triton is missing) hands over rows and each request's tokens,
and takes no processor together with speculative decoding. The second one (0.31 and newer) hands over slots and tensors
on the device (`vllm_slots`), also of drafts. Which of the two it is follows from how the class is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .vllm_rows import RectifiedRows
from .vllm_shared import Rectified, live
from .vllm_slots import RectifiedSlots

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class RectifiedDecoding(Rectified):
    """See the module's text; `RectifiedRows` or `RectifiedSlots` when it is called.

    Raises:
        UserError: the settings or the folder are wrong; Q_D knows fewer tokens than the language model, or reads
            shorter texts.
    """

    def __new__(cls, vllm_config: VllmConfig, *where: Any) -> Any:
        """The first runner gives a device and whether memory is pinned, the second one what it knows of its slots."""
        return RectifiedRows(vllm_config, *where) if len(where) == 2 else RectifiedSlots(vllm_config, *where)


def counts() -> dict[str, int]:
    """``steps`` and ``infeasible_steps`` of the engines in this process (not of those in processes of their own)."""
    return {
        "steps": sum(processor.steps for processor in live),
        "infeasible_steps": sum(processor.infeasible_steps for processor in live),
    }
