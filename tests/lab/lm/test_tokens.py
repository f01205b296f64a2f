import dataclasses
import json

import numpy as np
import pytest
import torch

from polargrad.lab.lm import Document, LanguageModelObjective, Source, decoder, open_source, tokenize, train_bpe
from polargrad.lab.lm import tokens as module
from polargrad.lab.lm.tokenizer import END_OF_TEXT
from polargrad.lab.lm.tokens import TokenShards
from tests.lab.lm.words import Counted, texts


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_bpe(Counted().source, 280, cache=tmp_path_factory.mktemp("vocabulary"))


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


@pytest.mark.parametrize("name", ["train-00001.tokens", "held_out-00001.tokens", "tokenizer.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "header", "foreign"])
def test_a_damaged_file_is_noticed_and_written_again(tmp_path, name, harm):
    def encoded(counted):
        vocabulary = train_bpe(counted.source, 280, cache=tmp_path)
        return tokenize(counted.source, vocabulary, cache=tmp_path, shard_tokens=20_000)

    whole = encoded(Counted())
    sound = [file.tokens[:] for file in whole]
    (path,) = tmp_path.rglob(name)
    header = path.with_name(path.name + ".header.json")
    content = path.read_bytes()
    if harm == "flip":
        path.write_bytes(content[:9] + bytes([content[9] ^ 0xFF]) + content[10:])
    elif harm == "cut":
        path.write_bytes(content[:-2])
    elif harm == "remove":
        path.unlink()
    elif harm == "header":
        header.write_text("{")
    else:
        header.write_text(json.dumps({**json.loads(header.read_text()), "source": "of another"}))
    again = Counted()
    with pytest.warns(RuntimeWarning, match=f"{name} is damaged"):
        mended = encoded(again)
    assert again.reads == [0 if name == "tokenizer.json" else 512]  # of a damaged shard its own documents alone
    assert all(np.array_equal(file.tokens[:], tokens) for file, tokens in zip(mended, sound, strict=True))
    assert mended.checksum == whole.checksum
    assert path.read_bytes() == content
    encoded(Counted())  # whole again: a warning would be an error here


def test_other_options_have_files_of_their_own(tokenizer, tmp_path):
    first = tokenize(Counted().source, tokenizer, cache=tmp_path)
    other = tokenize(Counted().source, tokenizer, held_out=0.1, cache=tmp_path)  # a warning would be an error here
    assert first.checksum != other.checksum
    again = Counted()
    assert tokenize(again.source, tokenizer, cache=tmp_path).checksum == first.checksum
    assert again.reads == []


def test_the_last_documents_of_a_source_of_known_length_are_held_out(tokenizer, tmp_path):
    counted = Counted()
    source = dataclasses.replace(counted.source, length=1300)
    made = tokenize(source, tokenizer, held_out=0.1, cache=tmp_path)
    expected = [document.text for document in counted.documents]
    assert decoded(tokenizer, made.train) == expected[:1170]
    assert decoded(tokenizer, made.held_out) == expected[1170:]


def test_a_large_vocabulary_needs_wider_tokens(tokenizer, tmp_path):
    narrow = tokenize(Counted(100).source, tokenizer, cache=tmp_path).train.tokens[:]
    larger = dataclasses.replace(tokenizer, vocab_size=70_000)
    wide = tokenize(Counted(100).source, larger, cache=tmp_path).train.tokens[:]
    assert (narrow.dtype, wide.dtype) == (np.uint16, np.uint32)
    assert wide.tolist() == narrow.tolist()


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
    text = "\n".join(texts(200))
    documents = [Document("long", text), Document("short", "polar"), Document("nothing", " \n")]
    source = Source("long", "long", lambda skip: iter(documents[skip:]))
    monkeypatch.setattr(module, "_PIECE", 1000)
    made = tokenize(source, tokenizer, cache=tmp_path)
    assert decoded(tokenizer, made.train) == [text]
    assert decoded(tokenizer, made.held_out) == ["polar"]


def test_text_without_text_is_an_error(tokenizer, tmp_path):
    empty = Source("blank", "blank", lambda skip: iter([Document("a", " "), Document("b", "\n")][skip:]))
    with pytest.raises(ValueError, match="blank has no text to train on"):
        tokenize(empty, tokenizer, cache=tmp_path)
    single = Source("single", "single", lambda skip: iter([Document("a", "polar")][skip:]))
    with pytest.raises(ValueError, match="single has no text to hold out; give more documents"):
        tokenize(single, tokenizer, cache=tmp_path)


def test_shards_are_trained_on_with_documents_shuffled(tokenizer, tmp_path):
    made = tokenize(Counted().source, tokenizer, cache=tmp_path, shard_tokens=20_000)
    model = decoder(hidden_size=16, layers=1, heads=2, vocabulary=280, sequence=16)
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
