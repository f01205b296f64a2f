import json

import pytest

from polargrad.lab.lm import corpora
from polargrad.lab.lm.corpora import Corpus, Document, split, standard_library, text_files


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


@pytest.fixture(scope="module")
def library():
    return standard_library()


def test_standard_library_is_ordered_and_leaves_out_tests(library):
    names = [document.name for document in library.train + library.held_out]
    assert names == sorted(names)
    assert {"json/decoder.py", "argparse.py", "unittest/case.py"} <= set(names)
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert folders.isdisjoint({"test", "tests", "idle_test", "site-packages", "dist-packages"})


def test_standard_library_holds_out_the_last_twentieth(library):
    total = len(library.train) + len(library.held_out)
    assert len(library.held_out) == round(0.05 * total)


def test_standard_library_is_the_same_every_time(library):
    assert standard_library().checksum == library.checksum


def test_standard_library_without_sources_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="text_files"):
        standard_library()


def test_a_source_file_is_read_in_the_coding_it_declares(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_bytes("# coding: latin-1\nx = 'é'\n".encode("latin-1"))
    write(tmp_path / "b.py", "x = 'ü'\n")
    monkeypatch.setattr(corpora.sysconfig, "get_path", lambda name: str(tmp_path))
    corpus = standard_library()
    assert corpus.train[0].text.endswith("x = 'é'\n")
    (tmp_path / "c.py").write_bytes(b"x = '\xff'\n")
    with pytest.raises(ValueError, match=r"c\.py"):
        standard_library()


def test_checksum_depends_on_text_names_order_and_split():
    documents = [Document(name, name * 3) for name in "abcd"]
    base = split("x", documents)
    others = [
        split("x", documents[::-1]),
        split("x", [*documents[:-1], Document("d", "ddx")]),
        split("x", [*documents[:-1], Document("e", "ddd")]),
        split("x", documents, 0.5),
        # The same bytes, divided otherwise.
        split("x", [Document("aa", "aa"), *documents[1:]]),
    ]
    assert len({base.checksum, *(other.checksum for other in others)}) == 6
    assert split("another name", documents).checksum == base.checksum


def test_split_leaves_out_documents_without_text():
    corpus = split("x", [Document("a", "one"), Document("b", " \n"), Document("c", "two")])
    assert [document.name for document in corpus.train + corpus.held_out] == ["a", "c"]


def test_a_single_document_is_split_at_a_line():
    text = "".join(f"line {i}\n" for i in range(100))
    corpus = split("x", [Document("a", text)])
    assert corpus.train[0].text + corpus.held_out[0].text == text
    assert corpus.held_out[0].text.count("\n") == 5


@pytest.mark.parametrize("documents", [[], [Document("a", " \n")]])
def test_an_empty_corpus_is_an_error(documents):
    with pytest.raises(ValueError, match="is empty"):
        split("nothing", documents)


def test_one_line_cannot_be_held_out():
    with pytest.raises(ValueError, match="give more text"):
        split("x", [Document("a", "just one line")])
    with pytest.raises(ValueError, match="give more text"):
        Corpus("x", (Document("a", "b"),), ())


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_an_impossible_share_is_an_error(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        split("x", [Document("a", "b"), Document("c", "d")], share)


def test_text_files_from_file_folder_and_pattern(tmp_path):
    a = write(tmp_path / "a.txt", "\ufeffone")
    b = write(tmp_path / "deep" / "b.md", "two")
    write(tmp_path / "picture.png", "not text")
    expected = ["one", "two"]
    for paths in (tmp_path, [a, b], [a, str(tmp_path / "**" / "*.md")], [a, tmp_path]):
        corpus = text_files(paths)
        assert [document.text for document in corpus.train + corpus.held_out] == expected


def test_json_lines_are_documents(tmp_path):
    # A raw U+2028 is allowed inside a JSON string and must not end the line.
    lines = [json.dumps({"text": "one\u2028more"}, ensure_ascii=False), "", json.dumps({"text": "two"})]
    corpus = text_files(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert [document.text for document in corpus.train + corpus.held_out] == ["one\u2028more", "two"]
    other = text_files(write(tmp_path / "b.jsonl", '{"body": "x"}\n{"body": "y"}\n'), field="body")
    assert other.train[0].text == "x"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ('{"body": "x"}', r"field=\.\.\."),
        ("[1]", r"field=\.\.\."),
        ('{"text": 3}', r"field=\.\.\."),
        ('{"text": "\\ud800"}', "surrogate"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", '{"text": "fine"}\n' + line)
    with pytest.raises(ValueError, match=rf"a\.jsonl:2.*{message}"):
        text_files(path)


def test_what_is_not_there_or_not_text_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="check the path"):
        text_files(tmp_path / "missing.txt")
    with pytest.raises(FileNotFoundError, match="holds no file"):
        text_files(tmp_path)
    with pytest.raises(ValueError, match=r"allowed are \.txt"):
        text_files(write(tmp_path / "a.csv", "1,2"))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        text_files(tmp_path / "b.txt")


def test_an_unreadable_file_names_itself(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "text")

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(corpora.Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"cannot read .*a\.txt.*check its permissions"):
        text_files(path)
