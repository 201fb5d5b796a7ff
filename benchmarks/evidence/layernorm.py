"""Write the MiniLM encoder with a LayerNorm before its head: a model to train, for the experiment `evidence-minilm`.

The folder is a Hugging Face checkpoint with code of its own (``trust_remote_code``). It has no head yet, so that each
seed draws another, as for the plain encoder.

    python -m benchmarks.evidence.layernorm runs/minilm-layernorm
"""

import sys
from pathlib import Path

from benchmarks.evidence.normed_bert import NormedBertForSequenceClassification
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from normbt.packaged_encoder import PACKAGED_ENCODER, locate_model


def main(folder: Path) -> None:
    """Write the checkpoint."""
    source = locate_model(PACKAGED_ENCODER)
    NormedBertForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
    config = AutoConfig.from_pretrained(source, num_labels=1)
    model = NormedBertForSequenceClassification.from_pretrained(source, config=config)
    headless = {name: value for name, value in model.state_dict().items() if not name.startswith("classifier.")}
    model.save_pretrained(folder, state_dict=headless)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, trust_remote_code=True)
    print(f"{folder}: {type(loaded).__name__}, {loaded.num_parameters():,} parameters")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
