"""Language modelling: corpora, tokens, decoders, and next-token prediction as an objective."""

from polargrad.lm.corpora import Corpus, Document, standard_library, text_files
from polargrad.lm.models import decoder
from polargrad.lm.objective import LanguageModelObjective
from polargrad.lm.tokenization import EncodedCorpus, TokenFile, Tokenizer, encode, train_bpe

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
