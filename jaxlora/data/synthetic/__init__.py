"""Generated MIMIC-III and MIMIC-IV: their format and their quirks, nobody's data; and plain English."""

from jaxlora.data.synthetic.demo import COLUMNS, write_mimic3
from jaxlora.data.synthetic.english import lists_of_words, plain_english
from jaxlora.data.synthetic.release import synthesize

__all__ = ["COLUMNS", "lists_of_words", "plain_english", "synthesize", "write_mimic3"]
