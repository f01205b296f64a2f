import json

import numpy as np
import pytest
import torch

from polargrad.lab.lm import LanguageModelObjective, decoder
from polargrad.lab.lm.corpora import Document
from polargrad.lab.lm.shards import TokenShards, tokenize, vocabulary_of
from polargrad.lab.lm.sources import Source, open_source
from polargrad.lab.lm.tokenization import END_OF_TEXT, load_tokenizer

WORDS = ["gradient", "matrix", "polar", "factor", "norm", "spectral", "größe", "矩阵"]


def texts(count):
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, 40)) + f"\n{i}\n" for i in range(count)]


class Counted:
    """A source that tells from where it was read."""

    def __init__(self, count=1300, name="words"):
        self.documents = [Document(str(i), text) for i, text in enumerate(texts(count))]
        self.reads = []
        self.source = Source(name, f"identity of {name}", self.read)

    def read(self, skip):
        self.reads.append(skip)
        return iter(self.documents[skip:])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return vocabulary_of(Counted().source, 280, cache=tmp_path_factory.mktemp("vocabulary"))


def decoded(tokenizer, file):
    return tokenizer.decode(file.tokens[:].tolist()).split(END_OF_TEXT)[:-1]


def test_shards_hold_every_document_once_in_order(tokenizer, tmp_path):
    counted = Counted()
    told = []
    made = tokenize(
        counted.source,
        tokenizer,
        held_out=0.1,
        cache=tmp_path,
        shard_tokens=20_000,
        progress=lambda *so_far: told.append(so_far),
    )
    assert len(list(tmp_path.rglob("train-*.tokens"))) == 3
    expected = [document.text for document in counted.documents]
    assert decoded(tokenizer, made.train) == [text for i, text in enumerate(expected) if i % 10 != 1]
    assert decoded(tokenizer, made.held_out) == expected[1::10]
    assert told[-1] == (1300, len(made.train.tokens) + len(made.held_out.tokens))
    assert counted.reads == [0]


def test_the_split_into_shards_changes_nothing_but_the_files(tokenizer, tmp_path):
    many = tokenize(Counted().source, tokenizer, cache=tmp_path / "many", shard_tokens=1)
    one = tokenize(Counted().source, tokenizer, cache=tmp_path / "one")
    assert np.array_equal(many.train.tokens[:], one.train.tokens[:])
    assert np.array_equal(many.held_out.tokens[:], one.held_out.tokens[:])


def test_finished_shards_are_not_read_again(tokenizer, tmp_path):
    first, again = Counted(), Counted()
    made = tokenize(first.source, tokenizer, cache=tmp_path, shard_tokens=20_000)
    reopened = tokenize(again.source, tokenizer, cache=tmp_path, shard_tokens=20_000)
    assert again.reads == []
    assert reopened.train.checksum == made.train.checksum


def test_encoding_goes_on_where_it_was_stopped(tokenizer, tmp_path):
    whole = tokenize(Counted().source, tokenizer, cache=tmp_path / "whole", shard_tokens=20_000)

    class Stopped(Counted):
        def read(self, skip):
            self.reads.append(skip)
            for document in self.documents[skip:]:
                if int(document.name) == 900:
                    raise KeyboardInterrupt
                yield document

    with pytest.raises(KeyboardInterrupt):
        tokenize(Stopped().source, tokenizer, cache=tmp_path / "part", shard_tokens=20_000)
    done = len(list((tmp_path / "part").rglob("train-*.tokens")))
    assert done == 1
    assert not list((tmp_path / "part").rglob("*.part"))
    rest = Counted()
    resumed = tokenize(rest.source, tokenizer, cache=tmp_path / "part", shard_tokens=20_000)
    assert rest.reads == [512]
    assert np.array_equal(resumed.train.tokens[:], whole.train.tokens[:])
    assert resumed.train.checksum == whole.train.checksum


@pytest.mark.parametrize("name", ["train-00001.tokens", "held_out-00001.tokens"])
def test_a_damaged_shard_alone_is_written_again(tokenizer, tmp_path, name):
    whole = tokenize(Counted().source, tokenizer, cache=tmp_path, shard_tokens=20_000)
    sound = whole.train.tokens[:].copy()
    (path,) = tmp_path.rglob(name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    again = Counted()
    with pytest.warns(RuntimeWarning, match="is damaged"):
        mended = tokenize(again.source, tokenizer, cache=tmp_path, shard_tokens=20_000)
    assert again.reads == [512]
    assert np.array_equal(mended.train.tokens[:], sound)
    assert mended.train.checksum == whole.train.checksum


def test_many_arrays_are_indexed_like_one():
    parts = [np.arange(5), np.arange(0), np.arange(5, 12), np.arange(12, 13)]
    shards, whole = TokenShards(parts), np.arange(13)
    assert len(shards) == 13
    random = np.random.default_rng(0)
    for shape in [(7,), (3, 4), (0,)]:
        places = random.integers(0, 13, shape)
        assert np.array_equal(shards[places], whole[places])
    for cut in [slice(None), slice(3, 9), slice(4, 5), slice(12, 40), slice(6, 6)]:
        assert np.array_equal(shards[cut], whole[cut])


def test_a_long_text_is_encoded_in_pieces(tokenizer, tmp_path, monkeypatch):
    from polargrad.lab.lm import shards

    text = "\n".join(texts(200))
    documents = [Document("long", text), Document("short", "polar"), Document("nothing", " \n")]
    source = Source("long", "long", lambda skip: iter(documents[skip:]))
    monkeypatch.setattr(shards, "_PIECE", 1000)
    made = tokenize(source, tokenizer, cache=tmp_path)
    assert decoded(tokenizer, made.train) == [text]
    assert decoded(tokenizer, made.held_out) == ["polar"]


@pytest.mark.parametrize("share", [0.0, 0.6, -1.0])
def test_an_impossible_share_is_an_error(tokenizer, tmp_path, share):
    with pytest.raises(ValueError, match=r"above 0 and at most 0\.5"):
        tokenize(Counted().source, tokenizer, held_out=share, cache=tmp_path)


def test_text_without_text_is_an_error(tokenizer, tmp_path):
    empty = Source("blank", "blank", lambda skip: iter([Document("a", " "), Document("b", "\n")][skip:]))
    with pytest.raises(ValueError, match="blank has no text in it"):
        tokenize(empty, tokenizer, cache=tmp_path)


def test_a_vocabulary_is_learned_once_and_not_from_what_is_held_out(tmp_path):
    counted, again = Counted(), Counted()
    learned = vocabulary_of(counted.source, 280, cache=tmp_path)
    assert vocabulary_of(again.source, 280, cache=tmp_path).checksum == learned.checksum
    assert again.reads == []
    other = Counted()
    other.documents[1] = Document("1", "zzzzzz qqqqqq " * 20_000)
    assert vocabulary_of(other.source, 280, cache=tmp_path / "other").checksum == learned.checksum
    other.documents[2] = Document("2", "zzzzzz qqqqqq " * 20_000)
    assert vocabulary_of(other.source, 280, cache=tmp_path / "third").checksum != learned.checksum


def test_a_tokenizer_is_read_from_its_file(tokenizer, tmp_path):
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    for where in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(str(where))
        assert loaded.vocab_size == 280
        assert loaded.end_of_text == tokenizer.end_of_text
        assert loaded.encode(["polar " + END_OF_TEXT]) == tokenizer.encode(["polar " + END_OF_TEXT])


def test_what_is_no_tokenizer_is_said_to_be_none(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        load_tokenizer(str(tmp_path))
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="none of the tokens that close a text"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_that_cannot_be_fetched_says_what_to_do(monkeypatch):
    from tokenizers import Tokenizer

    def fails(*_):
        raise Exception("error sending request\nmore")

    monkeypatch.setattr(Tokenizer, "from_pretrained", staticmethod(fails))
    with pytest.raises(FileNotFoundError, match=r"\(error sending request\).*huggingface-cli download nobody/none"):
        load_tokenizer("nobody/none")


def test_shards_are_trained_on_with_documents_shuffled(tokenizer, tmp_path):
    made = tokenize(Counted().source, tokenizer, cache=tmp_path, shard_tokens=20_000)
    model = decoder(hidden_size=16, layers=1, heads=2, vocab_size=280, sequence=16)
    options = {"batch_size": 4, "sequence": 16, "evaluation_windows": 8, "shuffle": "documents"}
    objective = LanguageModelObjective(model, *made, **options)
    again = LanguageModelObjective(model, *made, **options)
    assert np.array_equal(objective.batch(700).numpy(), again.batch(700).numpy())
    state = json.loads(json.dumps(objective.state_dict()))
    again.load_state_dict(state)
    with torch.no_grad():
        assert objective.evaluate()["val_loss"] == pytest.approx(np.log(280), rel=0.05)


def test_files_are_a_source(tmp_path, tokenizer):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("one\n")
    lines = [json.dumps({"body": f"two {i}"}) for i in range(3)]
    (tmp_path / "text" / "b.jsonl").write_text("\n".join(lines))
    source = open_source(str(tmp_path / "text"), field="body")
    assert [document.text for document in source.read(0)] == ["one\n", "two 0", "two 1", "two 2"]
    assert [document.text for document in source.read(2)] == ["two 1", "two 2"]
    assert [document.text for document in source.limited(3).read(1)] == ["two 0", "two 1"]
    assert source.limited(0) is source
    identities = {source.identity, source.limited(3).identity, source.limited(2).identity}
    (tmp_path / "text" / "a.txt").write_text("another\n")
    identities.add(open_source(str(tmp_path / "text"), field="body").identity)
    assert len(identities) == 4


def test_of_a_single_text_the_end_is_held_out(tmp_path, tokenizer):
    path = tmp_path / "book.txt"
    path.write_text("\n".join(f"line {i}" for i in range(100)))
    made = tokenize(open_source(str(path)), tokenizer, cache=tmp_path)
    (train,), (held_out,) = decoded(tokenizer, made.train), decoded(tokenizer, made.held_out)
    assert train + held_out == path.read_text()
    assert held_out.splitlines() == [f"line {i}" for i in range(95, 100)]
