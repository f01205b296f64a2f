"""A source of made-up text that counts how often it is read."""

import numpy as np

from polargrad.lab.lm import Document, Source

WORDS = ["gradient", "matrix", "polar", "factor", "norm", "spectral", "größe", "矩阵"]


def texts(count):
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, 40)) + f"\n{i}\n" for i in range(count)]


class Counted:
    """A source that notes from which document on it was read."""

    def __init__(self, count=1300, name="words"):
        self.documents = [Document(str(i), text) for i, text in enumerate(texts(count))]
        self.reads = []
        self.source = Source(name, f"identity of {name}", self.read)

    def read(self, skip):
        self.reads.append(skip)
        return iter(self.documents[skip:])
