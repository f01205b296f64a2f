"""The chain from text to a trained decoder, and the examples in the docstrings."""

import torch

from polargrad.lab.lm import Document, LanguageModelObjective, Source, decoder, tokenize, train_bpe
from polargrad.lab.train import Constant, LoopConfig, train


def test_a_small_decoder_learns_and_the_run_repeats(tmp_path):
    texts = [f"def f_{i}(x):\n    return x + {i}\n" * 8 for i in range(60)]
    documents = [Document(f"{i:02d}", text) for i, text in enumerate(texts)]
    source = Source("functions", "functions", lambda skip: iter(documents[skip:]))
    tokenizer = train_bpe(source, 264, cache=tmp_path)
    encoded = tokenize(source, tokenizer, cache=tmp_path)

    def run():
        model = decoder(hidden_size=32, layers=1, heads=2, vocabulary=264, sequence=32)
        objective = LanguageModelObjective(model, *encoded, batch_size=4, sequence=32, evaluation_windows=8)
        records = []
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        summary = train(objective, optimizer, Constant(), LoopConfig(30, eval_every=15), record=records.append)
        timed = {"seconds", "optimizer_seconds"}
        return summary, [{key: value for key, value in record.items() if key not in timed} for record in records]

    summary, records = run()
    assert records[0]["val_loss"] > 5.0
    assert summary.final["val_loss"] < 2.0
    assert summary.units == 30 * 4 * 32
    assert run()[1] == records
