import pytest
import torch
from transformers import AutoModelForCausalLM

from polargrad.lab.lm import decoder
from polargrad.lab.lm import tokenizer as module
from polargrad.lab.lm.generation import export
from polargrad.lab.lm.sources import Document
from polargrad.lab.lm.tokenizer import END_OF_TEXT, load_tokenizer, train_bpe
from tests.lab.lm.words import Counted


@pytest.fixture
def words():
    return Counted(40)


@pytest.fixture
def tokenizer(words, tmp_path):
    return train_bpe(words.source, 280, cache=tmp_path)


def test_any_text_survives_encoding(tokenizer):
    texts = ["polar factor", "", "\tdef f(x):\n    return 'ß…🙂'\n", "\x00\x7f", END_OF_TEXT + " here"]
    for text, tokens in zip(texts, tokenizer.encode(texts), strict=True):
        assert tokenizer.decode(tokens) == text
        assert all(0 <= token < tokenizer.vocab_size == 280 for token in tokens)


def test_text_cannot_spell_the_end_of_a_document(tokenizer):
    (tokens,) = tokenizer.encode([f"a{END_OF_TEXT}b"])
    assert tokenizer.end_of_text not in tokens


def test_the_vocabulary_is_the_same_wherever_it_is_trained(words, tokenizer, tmp_path):
    again = train_bpe(words.source, 280, cache=tmp_path / "elsewhere")
    assert again.checksum == tokenizer.checksum


def test_the_vocabulary_is_trained_once(tokenizer, tmp_path, monkeypatch):
    again = Counted(40)
    assert train_bpe(again.source, 280, cache=tmp_path).checksum == tokenizer.checksum
    assert again.reads == []

    def never(*args):
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "_train", never)
    for options in ({"vocab_size": 281}, {"held_out": 0.1}, {"documents": 39}):
        with pytest.raises(AssertionError, match="trained again"):
            train_bpe(again.source, **{"vocab_size": 280, **options}, cache=tmp_path)


def test_held_out_documents_and_those_past_the_number_asked_for_are_not_trained_on(tokenizer, tmp_path):
    other = Counted(40)
    other.documents[1] = other.documents[21] = Document("1", "zzzzzz qqqqqq " * 20_000)
    other.documents.append(Document("40", "zzzzzz qqqqqq " * 20_000))
    assert train_bpe(other.source, 280, documents=40, cache=tmp_path / "1").checksum == tokenizer.checksum
    assert train_bpe(other.source, 280, cache=tmp_path / "2").checksum != tokenizer.checksum
    other.documents[40] = other.documents[0]
    other.documents[2] = Document("2", "zzzzzz qqqqqq " * 20_000)
    assert train_bpe(other.source, 280, documents=40, cache=tmp_path / "3").checksum != tokenizer.checksum


@pytest.mark.parametrize("size", [256, 0, -1, 280.0, True])
def test_an_impossible_vocabulary_is_an_error(words, tmp_path, size):
    with pytest.raises(ValueError, match="at least 257"):
        train_bpe(words.source, size, cache=tmp_path)


def test_too_little_text_says_what_it_can_give(words, tmp_path):
    with pytest.raises(ValueError, match=r"ask for at most \d+") as caught:
        train_bpe(words.source, 5000, cache=tmp_path)
    assert not list(tmp_path.rglob("*.json"))
    most = int(str(caught.value).split("at most ")[1].split(",")[0])
    assert train_bpe(words.source, most, cache=tmp_path).vocab_size == most


def test_a_cache_folder_that_is_a_file_names_the_remedy(words, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(OSError, match="POLARGRAD_CACHE"):
        train_bpe(words.source, 280, cache=tmp_path / "cache")


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


@pytest.mark.parametrize("untied", [True, False])
def test_an_export_leaves_the_padding_of_the_vocabulary_out(tokenizer, tmp_path, untied):
    module = decoder(hidden_size=16, layers=1, heads=2, vocabulary=320, sequence=8, untied=untied).eval()
    model = AutoModelForCausalLM.from_pretrained(export(module, tokenizer, tmp_path / "out", "# card")).eval()
    ids = torch.arange(272, 280)[None]
    with torch.no_grad():
        written, whole = model(input_ids=ids).logits, module(input_ids=ids).logits
    assert written.shape == (1, 8, 280)
    assert (written - whole[..., :280]).abs().max() <= 1e-6
    assert whole.shape == (1, 8, 320)  # the module itself stays as it was
    assert module.config.vocab_size == 320
