"""Architectures of Hugging Face transformers, built from small configurations with random weights."""

from reducible.transformers_other import ARCHITECTURES as OTHER
from reducible.transformers_pixels import ARCHITECTURES as PIXELS
from reducible.transformers_text import ARCHITECTURES as TEXT
from reducible.transformers_words import ARCHITECTURES as WORDS

ARCHITECTURES = (*TEXT, *WORDS, *PIXELS, *OTHER)
