"""Language modelling: corpora, tokens, decoders, and next-token prediction as an objective."""

from polargrad.lab.lm.architectures import ARCHITECTURES, Architecture, architecture
from polargrad.lab.lm.corpora import Corpus, Document, standard_library, text_files
from polargrad.lab.lm.models import decoder
from polargrad.lab.lm.objective import LanguageModelObjective
from polargrad.lab.lm.shards import tokenize, vocabulary_of
from polargrad.lab.lm.sources import Source, open_source
from polargrad.lab.lm.tensor_parallel import tensor_cuts, tensor_plan
from polargrad.lab.lm.tokenization import EncodedCorpus, TokenFile, Tokenizer, encode, load_tokenizer, train_bpe

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Corpus",
    "Document",
    "EncodedCorpus",
    "LanguageModelObjective",
    "Source",
    "TokenFile",
    "Tokenizer",
    "architecture",
    "decoder",
    "encode",
    "load_tokenizer",
    "open_source",
    "standard_library",
    "tensor_cuts",
    "tensor_plan",
    "text_files",
    "tokenize",
    "train_bpe",
    "vocabulary_of",
]
