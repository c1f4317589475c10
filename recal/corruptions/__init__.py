"""The image corruptions of Hendrycks and Dietterich: batched, seeded, and usable on their own."""

from recal.corruptions.batches import corrupt
from recal.corruptions.names import CORRUPTIONS, EXTRA_CORRUPTIONS
from recal.corruptions.transform import Corruption

__all__ = ["CORRUPTIONS", "EXTRA_CORRUPTIONS", "Corruption", "corrupt"]
