"""From pairs to token ids: chat template once, one BOS, an EOS at the end, nothing cut or dropped in silence."""

from normbt.encoding.dataset import Overlong, encode_pairs, longest_sequence
from normbt.encoding.scoring import encode_conversations
from normbt.encoding.tokenizer import prepare_tokenizer

__all__ = ["Overlong", "encode_conversations", "encode_pairs", "longest_sequence", "prepare_tokenizer"]
