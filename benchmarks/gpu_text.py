"""Text for a GPU without a network: installed Python sources as one file of GPT-2-sized tokens, and a file of facts.

    python benchmarks/gpu_text.py .gpu    # writes .gpu/tokens.bin (40 MB) and .gpu/tokens.json

The sources of the installed `PACKAGES` (without tests, generated giants and copies) come in an order drawn from their
names' hashes, so that any part of it is a sample of all. A byte-level BPE vocabulary of 50,257 tokens is learned from
the first documents, and `polargrad.lab.lm.tokenize` writes them all in it and holds out every twentieth.

`tokens.bin` is little-endian uint16: the training tokens, then the held-out ones, every document closed by
`end_of_text`. `tokens.json` says how many of each there are:

    facts = json.loads(Path("tokens.json").read_text())
    tokens = numpy.memmap("tokens.bin", dtype="<u2", mode="r")
    train, held_out = tokens[: facts["train_tokens"]], tokens[facts["train_tokens"] :]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import platform
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polargrad.lab.lm import Document, Source, tokenize, train_bpe

PACKAGES = ("torch", "transformers", "sympy", "scipy", "sklearn", "numpy", "pandas", "matplotlib", "networkx")
LEFT_OUT = {"test", "tests", "testing", "_vendor", "__pycache__"}
VOCABULARY = 50_257  # GPT-2's
LONGEST = 200_000  # characters; longer files are tables and generated parsers
CHARACTERS_PER_TOKEN = 4.2  # more than Python in a vocabulary of its own has (4.0)
TEACHING = 3_000  # documents that the vocabulary is learned from


def source_files(site: Path, packages: Sequence[str]) -> list[Path]:
    """The Python files of some packages without their tests, ordered by the hash of their paths."""
    files = [
        path
        for package in packages
        for path in (site / package).rglob("*.py")
        if LEFT_OUT.isdisjoint(path.relative_to(site).parts)
    ]
    return sorted(files, key=lambda path: hashlib.sha256(path.relative_to(site).as_posix().encode()).digest())


def installed_sources(site: Path, packages: Sequence[str], characters: float) -> Source:
    """A source of documents from `source_files`, ended once it holds that many characters."""
    documents: list[Document] = []
    texts: set[str] = set()
    held = 0
    for path in source_files(site, packages):
        if held >= characters:
            break
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip() and len(text) <= LONGEST and text not in texts:
            texts.add(text)
            documents.append(Document(path.relative_to(site).as_posix(), text))
            held += len(text)
    if held < characters:
        raise SystemExit(
            f"the installed sources of {', '.join(packages)} hold {held:,} characters and {characters:,.0f} are "
            "needed; ask for fewer --tokens or name more --packages"
        )
    digest = hashlib.sha256("\0".join(part for document in documents for part in document).encode())
    return Source("installed Python sources", digest.hexdigest(), lambda skip: iter(documents[skip:]))


def main() -> None:
    """Write the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the two files go")
    parser.add_argument("--tokens", type=int, default=20_000_000, help="tokens in the file, held-out ones included")
    parser.add_argument("--packages", nargs="+", default=PACKAGES, help="installed packages to read")
    parser.add_argument("--cache", type=Path, help="folder of cached files; default: POLARGRAD_CACHE")
    options = parser.parse_args()

    site = Path(sysconfig.get_path("purelib"))
    source = installed_sources(site, options.packages, CHARACTERS_PER_TOKEN * options.tokens)
    documents = list(source.read(0))
    print(f"{len(documents):,} documents, {sum(len(d.text) for d in documents):,} characters", flush=True)
    vocabulary = train_bpe(source, VOCABULARY, documents=TEACHING, cache=options.cache)
    print(f"vocabulary {vocabulary.vocab_size:,}, sha256 {vocabulary.checksum[:16]}", flush=True)
    encoded = tokenize(
        source,
        vocabulary,
        cache=options.cache,
        progress=lambda read, tokens: print(f"{read:,} documents, {tokens:,} tokens", flush=True),
    )
    train, held_out = (file.tokens[:].astype("<u2") for file in encoded)
    if len(train) + len(held_out) < options.tokens:
        raise SystemExit(f"{len(train) + len(held_out):,} tokens came out of the text: raise CHARACTERS_PER_TOKEN")
    train = train[: options.tokens - len(held_out)]  # the last document may be cut

    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "tokens.bin"
    np.concatenate([train, held_out]).tofile(path)
    packages = {
        name: importlib.metadata.version({"sklearn": "scikit-learn"}.get(name, name)) for name in options.packages
    }
    facts = {
        "dtype": "<u2",
        "vocab_size": vocabulary.vocab_size,
        "end_of_text": vocabulary.end_of_text,
        "train_tokens": len(train),
        "held_out_tokens": len(held_out),
        "documents": len(documents),
        "characters": sum(len(document.text) for document in documents),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "tokenizer_sha256": vocabulary.checksum,
        "source_identity": source.identity,
        "packages": packages,
        "python": platform.python_version(),
    }
    path.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {len(train):,} training and {len(held_out):,} held-out tokens")


if __name__ == "__main__":
    main()
