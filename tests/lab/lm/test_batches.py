import json

import numpy as np
import pytest

from polargrad.lab.lm import TokenFile
from polargrad.lab.lm.batches import WindowBatches

END = 0


def documents(lengths, checksum="checksum"):
    """Documents of the given lengths; every token but the closing one is of its own."""
    tokens, number = [], 1
    for length in lengths:
        tokens += [*range(number, number + length - 1), END]
        number += length - 1
    return TokenFile(np.asarray(tokens, dtype=np.uint16), number, checksum, END)


def stream(batches, epoch, sequence):
    """An epoch's windows put back into the order of the shuffled stream, by their first tokens."""
    per_epoch = batches.windows // batches.batch_size
    return np.concatenate([batches.batch(step) for step in range(epoch * per_epoch, (epoch + 1) * per_epoch)])


def test_an_epoch_of_shuffled_documents_holds_every_document_whole():
    lengths = [5, 3, 9, 2, 8, 6]
    file = documents(lengths)
    batches = WindowBatches(file, batch_size=1, sequence=4, shuffle="documents", seed=3)
    assert batches.windows == 32 // 4
    whole = {tuple(d) for d in np.split(file.tokens.astype(int), np.cumsum(lengths)[:-1])}
    orders = []
    for epoch in range(3):
        windows = stream(batches, epoch, 4)
        # A window's last token is the next one's first: lay them end to end again.
        by_first = {tuple(window): window for window in windows}
        assert len(by_first) == 8
        joined = _joined(list(windows))
        found = [tuple(part) for part in _split_at_end(joined)]
        assert set(found[:-1]) <= whole
        assert len(joined) == 33
        orders.append([tuple(window) for window in windows])
    assert orders[0] != orders[1] != orders[2]


def _joined(windows):
    """Windows that overlap in one token as one stream; closing tokens are the only ones that are not unique."""
    remaining = [list(map(int, window)) for window in windows]
    for first in list(remaining):
        chain, rest = list(first), [window for window in remaining if window is not first]
        if _extend(chain, rest):
            return chain
    raise AssertionError("the windows do not make up one stream")


def _extend(chain, rest):
    if not rest:
        return True
    for window in rest:
        if window[0] == chain[-1]:
            longer = chain + window[1:]
            if _extend(longer, [other for other in rest if other is not window]):
                chain[:] = longer
                return True
    return False


def _split_at_end(tokens):
    part = []
    for token in tokens:
        part.append(token)
        if token == END:
            yield part
            part = []
    if part:
        yield part


def test_every_token_is_predicted_about_once_an_epoch():
    file = documents([7] * 40)
    batches = WindowBatches(file, batch_size=5, sequence=9, shuffle="documents")
    seen = np.concatenate([batches.batch(step)[:, 1:].ravel() for step in range(batches.windows // 5)])
    own = seen[seen != END]
    assert len(np.unique(own)) == len(own)
    assert len(seen) >= len(file.tokens) - 9 - 5 * 9


@pytest.mark.parametrize("shuffle", ["documents", "windows"])
def test_any_step_can_be_returned_to(shuffle):
    file = documents([5, 3, 9, 2, 8, 6] * 4)
    make = lambda **options: WindowBatches(file, batch_size=3, sequence=4, shuffle=shuffle, **{"seed": 1, **options})  # noqa: E731
    first, again = make(), make()
    forwards = [first.batch(step) for step in range(40)]
    state = json.loads(json.dumps(first.state_dict()))
    assert state["step"] == 40
    again.load_state_dict(state)
    assert again.state_dict() == state
    assert all(np.array_equal(again.batch(step), forwards[step]) for step in reversed(range(40)))
    assert not all(np.array_equal(make(seed=2).batch(step), forwards[step]) for step in range(40))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 2}, "seed was 0 and is 2"),
        ({"batch_size": 4}, "batch_size was 3 and is 4"),
        ({"sequence": 5}, "sequence was 4 and is 5"),
        ({"shuffle": "documents"}, "shuffle was 'windows' and is 'documents'"),
    ],
)
def test_a_position_in_another_order_is_refused(changed, named):
    file = documents([5, 3, 9, 2, 8, 6] * 4)
    state = WindowBatches(file, batch_size=3, sequence=4).state_dict()
    with pytest.raises(ValueError, match=named):
        WindowBatches(file, **{"batch_size": 3, "sequence": 4, **changed}).load_state_dict(state)


def test_a_position_in_other_tokens_is_refused():
    state = WindowBatches(documents([5, 9], "one"), batch_size=1, sequence=4).state_dict()
    with pytest.raises(ValueError, match=r"tokens was 'one' and is 'two'.*begin a new run"):
        WindowBatches(documents([5, 9], "two"), batch_size=1, sequence=4).load_state_dict(state)


def test_documents_need_to_be_told_apart():
    bare = documents([5, 9])._replace(end_of_text=None)
    with pytest.raises(ValueError, match="shuffle='windows' needs no documents"):
        WindowBatches(bare, batch_size=1, sequence=4, shuffle="documents")
    with pytest.raises(ValueError, match="shuffle must be one of 'documents', 'windows'; got 'lines'"):
        WindowBatches(bare, batch_size=1, sequence=4, shuffle="lines")
