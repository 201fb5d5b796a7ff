"""NormBT under any trainer: the gradient of each pair's scores is multiplied by the pair's weight."""

from normbt.attachment.capture import is_attached
from normbt.attachment.handle import Attachment, attach

__all__ = ["Attachment", "attach", "is_attached"]
