"""Language modelling: corpora, tokens, decoders, and next-token prediction as an objective."""

from .corpora import Corpus, Document, standard_library, text_files
from .models import decoder
from .objective import LanguageModelObjective
from .tokenization import EncodedCorpus, TokenFile, Tokenizer, encode, train_bpe

__all__ = [
    "Corpus",
    "Document",
    "EncodedCorpus",
    "LanguageModelObjective",
    "TokenFile",
    "Tokenizer",
    "decoder",
    "encode",
    "standard_library",
    "text_files",
    "train_bpe",
]
