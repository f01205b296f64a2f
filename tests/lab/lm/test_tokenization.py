import errno
import json
import os

import numpy as np
import pytest

from polargrad.lab.lm import cache, tokenization
from polargrad.lab.lm.cache import cache_folder, publish, verified_header
from polargrad.lab.lm.corpora import Document, split
from polargrad.lab.lm.tokenization import END_OF_TEXT, encode, train_bpe

WORDS = ["gradient", "matrix", "polar", "factor", "norm", "spectral", "momentum", "step", "größe", "矩阵"]


@pytest.fixture(scope="module")
def corpus():
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, 60)) + "\n" for _ in range(40)]
    return split("words", [Document(f"{i:02d}", text) for i, text in enumerate(texts)])


@pytest.fixture
def tokenizer(corpus, tmp_path):
    return train_bpe(corpus, 280, cache=tmp_path)


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_any_text_survives_encoding(tokenizer):
    texts = ["polar factor", "", "\tdef f(x):\n    return 'ß…🙂'\n", "\x00\x7f", END_OF_TEXT + " here"]
    for text, tokens in zip(texts, tokenizer.encode(texts), strict=True):
        assert tokenizer.decode(tokens) == text
        assert all(0 <= token < tokenizer.vocab_size == 280 for token in tokens)


def test_text_cannot_spell_the_end_of_a_document(tokenizer):
    (tokens,) = tokenizer.encode([f"a{END_OF_TEXT}b"])
    assert tokenizer.end_of_text not in tokens


def test_the_vocabulary_is_the_same_wherever_it_is_learned(corpus, tokenizer, tmp_path):
    again = train_bpe(corpus, 280, cache=tmp_path / "elsewhere")
    assert again.checksum == tokenizer.checksum


def test_the_vocabulary_is_learned_once(corpus, tokenizer, tmp_path, monkeypatch):
    def never(*args):
        raise AssertionError("learned again")

    monkeypatch.setattr(tokenization, "_learn", never)
    assert train_bpe(corpus, 280, cache=tmp_path).checksum == tokenizer.checksum
    with pytest.raises(AssertionError, match="learned again"):
        train_bpe(corpus, 281, cache=tmp_path)


def test_the_held_out_documents_teach_nothing(corpus, tokenizer, tmp_path):
    assert len(corpus.held_out) == 2
    other = split("other", [*corpus.train, Document("x", "zzzzzz " * 500), Document("y", "qqqqqq " * 500)])
    assert other.train == corpus.train
    assert train_bpe(other, 280, cache=tmp_path).checksum == tokenizer.checksum


@pytest.mark.parametrize("size", [256, 0, -1, 280.0, True])
def test_an_impossible_vocabulary_is_an_error(corpus, tmp_path, size):
    with pytest.raises(ValueError, match="at least 257"):
        train_bpe(corpus, size, cache=tmp_path)


def test_too_small_a_corpus_says_what_it_can_give(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"ask for at most \d+") as caught:
        train_bpe(corpus, 5000, cache=tmp_path)
    assert not list(tmp_path.rglob("*.json"))
    most = int(str(caught.value).split("at most ")[1].split(",")[0])
    assert train_bpe(corpus, most, cache=tmp_path).vocab_size == most


def test_the_token_files_hold_the_documents(corpus, tokenizer, tmp_path):
    encoded = encode(corpus, tokenizer, cache=tmp_path)
    for file, documents in zip(encoded, (corpus.train, corpus.held_out), strict=True):
        assert isinstance(file.tokens, np.memmap)
        assert file.tokens.dtype == np.uint16
        assert not file.tokens.flags.writeable
        text = tokenizer.decode(file.tokens.tolist())
        assert text == "".join(document.text + END_OF_TEXT for document in documents)


def test_a_large_vocabulary_needs_wider_tokens(corpus, tokenizer, tmp_path):
    narrow = encode(corpus, tokenizer, cache=tmp_path).train.tokens
    larger = tokenization.Tokenizer(tokenizer.backend, 70_000, tokenizer.end_of_text, tokenizer.checksum)
    wide = encode(corpus, larger, cache=tmp_path).train.tokens
    assert wide.dtype == np.uint32
    assert wide.tolist() == narrow.tolist()


def test_the_tokens_are_written_once(corpus, tokenizer, tmp_path, monkeypatch):
    first = encode(corpus, tokenizer, cache=tmp_path)
    monkeypatch.setattr(tokenization, "_write_tokens", None)
    again = encode(corpus, tokenizer, cache=tmp_path)
    assert [file.checksum for file in again] == [file.checksum for file in first]


@pytest.mark.parametrize("name", ["train.tokens", "held_out.tokens", "tokenizer.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "header", "foreign"])
def test_a_damaged_file_is_noticed_and_built_again(corpus, tokenizer, tmp_path, name, harm):
    sound = [file.tokens.tolist() for file in encode(corpus, tokenizer, cache=tmp_path)]
    (path,) = tmp_path.rglob(name)
    header = path.with_name(path.name + ".header.json")
    content = path.read_bytes()
    if harm == "flip":
        damage(path)
    elif harm == "cut":
        path.write_bytes(content[:-2])
    elif harm == "remove":
        path.unlink()
    elif harm == "header":
        header.write_text("{")
    else:
        header.write_text(json.dumps({**json.loads(header.read_text()), "corpus": "of another"}))
    with pytest.warns(RuntimeWarning, match=f"{name} is damaged"):
        again = encode(corpus, train_bpe(corpus, 280, cache=tmp_path), cache=tmp_path)
    assert [file.tokens.tolist() for file in again] == sound
    assert path.read_bytes() == content
    # Whole again: no warning, which would be an error here.
    encode(corpus, train_bpe(corpus, 280, cache=tmp_path), cache=tmp_path)


def test_an_interrupted_write_leaves_nothing(tmp_path):
    path = tmp_path / "data"

    def half(part):
        part.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(path, half)
    assert list(tmp_path.iterdir()) == []
    assert verified_header(path) is None


def test_a_file_without_its_header_does_not_count(tmp_path):
    path = tmp_path / "data"
    publish(path, lambda part: part.write_bytes(b"whole"), kind="x")
    header = verified_header(path, kind="x")
    assert header is not None
    assert header["bytes"] == 5
    path.with_name("data.header.json").unlink()
    assert verified_header(path) is None


def test_a_full_disk_names_the_remedy_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "data"
    publish(path, lambda part: part.write_bytes(b"old"))

    def full(part):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left.*POLARGRAD_CACHE"):
        publish(path, full)
    assert path.read_bytes() == b"old"
    assert verified_header(path) is not None


def test_a_cache_folder_that_is_a_file_names_the_remedy(corpus, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(OSError, match="POLARGRAD_CACHE"):
        train_bpe(corpus, 280, cache=tmp_path / "cache")


def test_the_cache_folder_is_chosen_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("POLARGRAD_CACHE", str(tmp_path / "environment"))
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    assert cache_folder() == tmp_path / "environment"
    monkeypatch.delenv("POLARGRAD_CACHE")
    monkeypatch.setattr(cache.Path, "home", lambda: tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "polargrad"
    assert not os.listdir(tmp_path)
