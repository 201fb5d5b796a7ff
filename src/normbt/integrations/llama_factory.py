"""LLaMA-Factory: NormBT in stage ``rm``, by rebinding the trainer that its workflow names.

Example:
    python -m normbt.integrations.llama_factory rm.yaml
"""

from typing import Any

from llamafactory.train.rm import workflow  # pyright: ignore[reportMissingImports] - of the host
from llamafactory.train.rm.trainer import PairwiseTrainer  # pyright: ignore[reportMissingImports] - of the host
from llamafactory.train.tuner import run_exp  # pyright: ignore[reportMissingImports] - of the host

from normbt.integrations.hf_trainer import NormBTMixin


class NormBTPairwiseTrainer(NormBTMixin, PairwiseTrainer):
    """LLaMA-Factory's reward trainer with NormBT.

    The head is the whole value head, not the Linear in it: between the two stands a dropout, whose noise would be most
    of the distance of a pair that looks alike.
    """

    normbt_head = "v_head"


def register(**settings: Any) -> None:
    """Let stage ``rm`` train with NormBT.

    Args:
        settings: of :func:`normbt.attach`: ``beta``, ``eps``, ``max_weight``, ``distance``, ``mu_init``.
    """
    NormBTPairwiseTrainer.normbt_settings = settings
    workflow.PairwiseTrainer = NormBTPairwiseTrainer


if __name__ == "__main__":
    # Not through llamafactory-cli: with several GPUs it starts processes that know nothing of this.
    register()
    run_exp()
