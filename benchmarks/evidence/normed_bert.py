"""BERT whose head reads normalised states: copied into the checkpoint that `layernorm.py` writes."""

from torch import nn
from transformers import BertConfig, BertForSequenceClassification


class NormedBertForSequenceClassification(BertForSequenceClassification):
    """`BertForSequenceClassification` with a LayerNorm between the pooled state and the head."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        # In the dropout's place: the inherited forward calls it between the two.
        self.dropout = nn.Sequential(nn.LayerNorm(config.hidden_size), self.dropout)
        self.post_init()
