"""Language modelling: text, tokens, decoders, and next-token prediction as an objective."""

from polargrad.lab.lm.models import ARCHITECTURES, Architecture, architecture, decoder
from polargrad.lab.lm.objective import LanguageModelObjective
from polargrad.lab.lm.sources import Document, Source, open_source, standard_library, text_files
from polargrad.lab.lm.tensor_parallel import tensor_cuts, tensor_plan
from polargrad.lab.lm.tokenizer import Tokenizer, load_tokenizer, train_bpe
from polargrad.lab.lm.tokens import EncodedCorpus, TokenFile, tokenize

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Document",
    "EncodedCorpus",
    "LanguageModelObjective",
    "Source",
    "TokenFile",
    "Tokenizer",
    "architecture",
    "decoder",
    "load_tokenizer",
    "open_source",
    "standard_library",
    "tensor_cuts",
    "tensor_plan",
    "text_files",
    "tokenize",
    "train_bpe",
]
