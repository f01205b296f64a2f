import json

import pytest

from polargrad.lab.lm import sources
from polargrad.lab.lm.sources import SOURCES, Source, open_source, register, standard_library, text_files
from polargrad.lab.run.runner import train_unrecorded
from tests.runs import tiny_spec


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def texts(source, skip=0):
    return [document.text for document in source.read(skip)]


@pytest.fixture(scope="module")
def library():
    return standard_library()


def test_standard_library_is_ordered_and_leaves_out_tests(library):
    names = [document.name for document in library.read(0)]
    assert names == sorted(names)
    assert {"json/decoder.py", "argparse.py", "unittest/case.py"} <= set(names)
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert folders.isdisjoint({"test", "tests", "idle_test", "site-packages", "dist-packages"})
    assert [document.name for document in library.read(100)] == names[100:]
    assert all(text.strip() for text in texts(library))


def test_standard_library_holds_out_its_last_documents(library):
    total = len(texts(library))
    assert library.length == total
    for share in (0.05, 0.2):
        assert list(library.held_out(share)) == list(range(total - round(share * total), total))
    few = library.limited(3)
    assert (len(texts(few)), list(few.held_out(0.05))) == (3, [2])


def test_standard_library_is_the_same_every_time(library):
    assert standard_library().identity == library.identity
    assert open_source("standard-library").identity == library.identity
    assert library.name.startswith("standard-library-3.")


def test_standard_library_without_sources_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="text_files"):
        standard_library()


def test_a_source_file_is_read_in_the_coding_it_declares(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_bytes("# coding: latin-1\nx = 'é'\n".encode("latin-1"))
    write(tmp_path / "b.py", "x = 'ü'\n")
    write(tmp_path / "empty.py", " \n")
    monkeypatch.setattr(sources.sysconfig, "get_path", lambda name: str(tmp_path))
    assert texts(standard_library())[1:] == ["x = 'ü'\n"]
    assert texts(standard_library())[0].endswith("x = 'é'\n")
    (tmp_path / "c.py").write_bytes(b"x = '\xff'\n")
    with pytest.raises(ValueError, match=r"c\.py"):
        standard_library()


def test_the_library_s_identity_depends_on_text_names_and_order(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.sysconfig, "get_path", lambda name: str(tmp_path))
    identities = set()
    # The last two hold the same bytes, divided otherwise between name and text.
    for files in ({"a": "1", "b": "2"}, {"a": "2", "b": "1"}, {"a": "1", "c": "2"}, {"a.pyx": "1"}, {"a": "x.py1"}):
        for path in tmp_path.iterdir():
            path.unlink()
        for name, text in files.items():
            write(tmp_path / f"{name}.py", text)
        identities.add(standard_library().identity)
    assert len(identities) == 5


@pytest.mark.parametrize(("share", "every"), [(0.05, 20), (0.1, 10), (0.3, 3), (0.5, 2), (0.001, 1000)])
def test_held_out_documents_are_spread_evenly(share, every):
    rest = Source("any", "", lambda skip: iter(())).held_out(share)
    assert [number for number in range(3 * every) if number in rest] == [1, every + 1, 2 * every + 1]


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0, -0.1])
def test_an_impossible_share_is_an_error(share, library):
    for source in (library, Source("any", "", lambda skip: iter(()))):
        with pytest.raises(ValueError, match=r"above 0 and at most 0\.5"):
            source.held_out(share)


def test_a_single_document_is_cut_at_a_line(tmp_path):
    text = "".join(f"line {i}\n" for i in range(100))
    head, tail = texts(text_files(write(tmp_path / "a.txt", text)))
    assert head + tail == text
    assert tail.count("\n") == 5
    assert texts(text_files(write(tmp_path / "b.txt", "just one line"))) == ["just one line"]


def test_files_are_not_data_sets(tmp_path):
    path = write(tmp_path / "a.txt", "text")
    for where in (str(path), "standard-library"):
        with pytest.raises(ValueError, match=r"split 'test' choose a part of a data set, and .* is not one"):
            open_source(where, split="test")
        with pytest.raises(ValueError, match=r"field 'body' is an entry of JSON lines, and .* has none: leave it out"):
            open_source(where, field="body")
    with pytest.raises(ValueError, match="field 'body' is an entry of JSON lines"):
        text_files(path, field="body")


# As CONTRIBUTING walks it.
HELP_TOPICS = """
import hashlib
from pydoc_data.topics import topics
from polargrad.lab.lm.sources import Document, Source, register

@register("help-topics")
def help_topics(split="train"):
    documents = [Document(name, text) for name, text in sorted(topics.items())]
    identity = hashlib.sha256(repr(documents).encode()).hexdigest()
    return Source(f"help-topics, {split}", identity, lambda skip: iter(documents[skip:]))
"""


def test_a_source_from_outside_is_one_function(tmp_path, monkeypatch):
    (tmp_path / "help_topics.py").write_text(HELP_TOPICS)
    monkeypatch.syspath_prepend(tmp_path)
    import help_topics  # pyright: ignore[reportMissingImports]

    try:
        source = open_source("help-topics", split="all")
        assert source.name == "help-topics, all"
        assert texts(source, 3) == texts(help_topics.help_topics())[3:]
        spec = tiny_spec("help-topics", steps=2)
        monkeypatch.setenv("POLARGRAD_CACHE", str(tmp_path / "cache"))
        assert [record["step"] for record in train_unrecorded(spec) if record["kind"] == "step"] == [1, 2]
        with pytest.raises(ValueError, match=r"subset 'b' and .* choose a part of a data set"):
            open_source("help-topics", subset="b")
        with pytest.raises(ValueError, match="field 'body' is an entry of JSON lines, and 'help-topics' has none"):
            open_source("help-topics", field="body")
        with pytest.raises(ValueError, match="the source of text 'help-topics' is taken by help_topics"):
            register("help-topics")(standard_library)
    finally:
        del SOURCES["help-topics"]


def test_text_files_from_file_folder_and_pattern(tmp_path):
    a = write(tmp_path / "a.txt", "\ufeffone")
    b = write(tmp_path / "deep" / "b.md", "two")
    write(tmp_path / "picture.png", "not text")
    expected = ["one", "two"]
    for paths in (tmp_path, [a, b], [a, str(tmp_path / "**" / "*.md")], [a, tmp_path]):
        assert texts(text_files(paths)) == expected


def test_json_lines_are_documents(tmp_path):
    # A raw U+2028 is allowed inside a JSON string and must not end the line.
    lines = [json.dumps({"text": "one\u2028more"}, ensure_ascii=False), "", json.dumps({"text": "two"})]
    assert texts(text_files(write(tmp_path / "a.jsonl", "\n".join(lines)))) == ["one\u2028more", "two"]
    other = text_files(write(tmp_path / "b.jsonl", '{"body": "x"}\n{"body": "y"}\n'), field="body")
    assert texts(other) == ["x", "y"]


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
    path = write(tmp_path / "a.jsonl", '{"text": "fine"}\n' * 2 + line)
    source = text_files(path)
    with pytest.raises(ValueError, match=rf"a\.jsonl:3.*{message}"):
        texts(source)


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

    monkeypatch.setattr(sources.Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"cannot read .*a\.txt.*check its permissions"):
        text_files(path)
