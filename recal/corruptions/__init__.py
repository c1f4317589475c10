"""The image corruptions of Hendrycks and Dietterich: batched, seeded, and usable on their own."""

from recal.corruptions.corrupt import Corruption, corrupt
from recal.corruptions.parameters import CORRUPTIONS, EXTRA_CORRUPTIONS

__all__ = ["CORRUPTIONS", "EXTRA_CORRUPTIONS", "Corruption", "corrupt"]
