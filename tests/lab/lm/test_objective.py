import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from polargrad.lab.lm import LanguageModelObjective, TokenFile, decoder


class Bigram(nn.Module):
    """Logits from the last token alone."""

    def __init__(self, vocab_size=16):
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)
        nn.init.zeros_(self.table.weight)

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.table(input_ids))


def token_file(tokens, vocab_size=16):
    return TokenFile(np.asarray(tokens, dtype=np.uint16), vocab_size, "checksum")


def counting(length, vocab_size=16):
    return token_file(np.arange(length) % vocab_size, vocab_size)


def objective(module=None, train=None, held_out=None, **options):
    options = {"batch_size": 3, "sequence": 8, **options}
    return LanguageModelObjective(module or Bigram(), train or counting(200), held_out or counting(100), **options)


def test_a_batch_is_a_function_of_seed_and_step():
    a, b, other = objective(seed=1), objective(seed=1), objective(seed=2)
    forwards = [a.batch(step) for step in range(30)]
    backwards = [b.batch(step) for step in reversed(range(30))][::-1]
    assert all(torch.equal(x, y) for x, y in zip(forwards, backwards, strict=True))
    assert not all(torch.equal(x, other.batch(step)) for step, x in enumerate(forwards))
    assert forwards[0].shape == (3, 9)
    assert forwards[0].dtype == torch.int64


def test_an_epoch_visits_every_window_once_and_the_next_in_another_order():
    train = token_file(np.arange(201), 300)
    made = objective(train=train, module=Bigram(300), batch_size=4)
    windows = 200 // 8 - 1
    assert windows == 24
    epochs = []
    for epoch in range(3):
        starts = torch.cat([made.batch(step)[:, 0] for step in range(6 * epoch, 6 * epoch + 6)])
        shift = int(starts.min())
        assert 0 <= shift < 8
        assert sorted(starts.tolist()) == [shift + 8 * i for i in range(windows)]
        epochs.append((starts - shift).tolist())
    assert epochs[0] != epochs[1] != epochs[2]


def test_batches_may_span_epochs():
    made = objective(train=counting(3 * 8 + 1), batch_size=5)
    assert made.batch(0).shape == (5, 9)
    assert torch.equal(made.batch(4), objective(train=counting(3 * 8 + 1), batch_size=5).batch(4))


def test_loss_is_the_cross_entropy_of_the_next_token():
    made = objective()
    assert made.loss(0).item() == pytest.approx(math.log(16), rel=1e-6)
    with torch.no_grad():  # a counter's successor is certain
        made.module.table.weight.copy_(50.0 * torch.eye(16).roll(1, dims=1))
    assert made.loss(0).item() < 1e-6
    with torch.no_grad():  # negative control: the same table predicting the token itself
        made.module.table.weight.copy_(50.0 * torch.eye(16))
    assert made.loss(0).item() > 40


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_loss_agrees_with_the_model_s_own(family):
    model = decoder(family, hidden_size=16, layers=1, heads=2, vocabulary=16, sequence=8)
    made = objective(model)
    batch = made.batch(2)
    logits = model(input_ids=batch[:, :-1]).logits
    own = model.loss_function(logits, None, vocab_size=16, shift_labels=batch[:, 1:].contiguous())
    assert made.loss(2).item() == pytest.approx(own.item(), rel=1e-6)
    made.loss(2).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_padding_of_the_vocabulary_leaves_the_loss_as_it_was(compiled):
    exact, padded = (decoder(hidden_size=16, layers=1, heads=2, vocabulary=size, sequence=8) for size in (16, 64))
    weights = exact.state_dict()
    for name, value in padded.state_dict().items():  # padding is random
        value[tuple(slice(size) for size in weights[name].shape)] = weights[name]
    losses, gradients = [], []
    for model in (exact, padded):
        made = objective(model, compiled=compiled)
        loss = made.loss(0)
        loss.backward()
        with torch.no_grad():
            losses.append((loss.item(), made.evaluate()["val_loss"]))
        gradients.append(model.lm_head.weight.grad)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    torch.testing.assert_close(gradients[1][:16], gradients[0])
    assert not gradients[1][16:].any()
    full = torch.nn.functional.cross_entropy(  # negative control: with the padding among the choices
        padded(input_ids=made.batch(0)[:, :-1]).logits.flatten(0, 1), made.batch(0)[:, 1:].flatten()
    )
    assert full.item() > losses[0][0] + 0.1


def test_evaluation_is_the_mean_over_fixed_windows_whatever_the_batch():
    random = np.random.default_rng(0)
    held_out = token_file(random.integers(0, 16, 500))
    torch.manual_seed(0)
    module = Bigram()
    nn.init.normal_(module.table.weight)
    with torch.no_grad():
        values = [
            objective(module, held_out=held_out, batch_size=size, seed=size, evaluation_windows=10).evaluate()[
                "val_loss"
            ]
            for size in (1, 3, 10, 64)
        ]
        everything = objective(module, held_out=held_out, evaluation_windows=10**6).evaluate()["val_loss"]
        tokens = torch.from_numpy(held_out.tokens.astype(np.int64))[: 62 * 8 + 1]
        by_hand = nn.functional.cross_entropy(module.table(tokens[:-1]), tokens[1:]).item()
    assert values == pytest.approx([values[0]] * 4, rel=1e-6)
    assert everything == pytest.approx(by_hand, rel=1e-6)
    assert values[0] != pytest.approx(everything, rel=1e-4)


def test_evaluation_windows_spread_over_the_whole_text():
    made = objective(held_out=counting(8 * 100 + 1), evaluation_windows=4)
    assert made._evaluation_starts.tolist() == [0, 200, 400, 600]


def test_text_shorter_than_one_sequence_is_an_error():
    objective(train=counting(9), held_out=counting(9))
    with pytest.raises(ValueError, match=r"the training text has 8 tokens, and one sequence needs 9.*at most 7"):
        objective(train=counting(8))
    with pytest.raises(ValueError, match="the held-out text has 1 tokens"):
        objective(held_out=counting(1))


def test_a_model_that_does_not_fit_the_text_is_an_error():
    model = decoder(hidden_size=16, layers=1, heads=2, vocabulary=300, sequence=8)
    with pytest.raises(ValueError, match="build the model with vocabulary=301"):
        objective(model, train=counting(200, 301))
    with pytest.raises(ValueError, match="sequence 9 is longer than the model's 8"):
        objective(model, sequence=9)


@pytest.mark.parametrize(
    "option", [{"batch_size": 0}, {"sequence": 0}, {"evaluation_windows": -1}, {"sequence": 2.0}, {"seed": -1}]
)
def test_impossible_options_are_named(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        objective(**option)


def random_objective(**options):
    torch.manual_seed(3)
    module = decoder(hidden_size=16, layers=1, heads=2, vocabulary=16, sequence=8).double()
    return objective(module, batch_size=12, **options)


@pytest.mark.parametrize("accumulation", [2, 3, 12])
def test_accumulated_gradients_are_those_of_the_whole_batch(accumulation):
    whole, parted = random_objective(), random_objective(accumulation=accumulation)
    whole.loss(5).backward()
    total = 0.0
    for part in parted.parts(5):
        part.backward()
        total += part.item()
    assert total == pytest.approx(whole.loss(5).item(), rel=1e-6)
    for one, other in zip(whole.module.parameters(), parted.module.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-8)
    # Negative control: another step's batch has another gradient.
    other = random_objective()
    other.loss(6).backward()
    assert not torch.allclose(other.module.lm_head.weight.grad, whole.module.lm_head.weight.grad, rtol=1e-2)


def test_parts_must_be_of_equal_size():
    with pytest.raises(ValueError, match="accumulation 5 does not divide the batch of 12"):
        random_objective(accumulation=5)


def test_autocast_computes_in_bfloat16_and_keeps_the_weights():
    exact, cast = random_objective(), random_objective(autocast=torch.bfloat16)
    for made in (exact, cast):
        made.module.float()
    loss = cast.loss(0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert {p.grad.dtype for p in cast.module.parameters()} == {torch.float32}
    assert loss.item() == pytest.approx(exact.loss(0).item(), rel=0.02)
    assert loss.item() != exact.loss(0).item()


def test_the_position_is_the_batches_own():
    made = objective()
    made.batch(6)
    state = made.state_dict()
    assert state["step"] == 7
    objective().load_state_dict(state)
    with pytest.raises(ValueError, match="another order of batches"):
        objective(seed=9).load_state_dict(state)
