"""Weight formats: each opens as a :class:`Checkpoint` whose tensors have Mistral's reference names."""

from checkpoints.formats.checkpoint import Checkpoint
from checkpoints.formats.detect import open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
