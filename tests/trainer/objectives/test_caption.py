"""Category words, text decoder, caption objective: formulas in float64, draws, and what they can learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from contract.errors import ConfigError
from trainer.batch import Batch, Forward, Tokens
from trainer.objectives.beam import generate
from trainer.objectives.caption import Caption, CaptionLoss
from trainer.objectives.category_words import Gumbel
from trainer.objectives.loss import Context
from trainer.objectives.text_decoder import Decoder

VOCABULARY = ("[unknown]", "[CLS]", "[SEP]", "a", "red", "blue", "star", "circle")
SPECIAL = (1, 2)
NUM_WORDS, DIM, LONGEST = len(VOCABULARY), 6, 7
DECODER = Decoder(width=16, num_heads=2, dropout=0.0)


def context(*modalities: str) -> Context:
    torch.manual_seed(3)
    vectors = 0.05 * torch.randn(NUM_WORDS, 5)
    return Context(
        student=nn.Identity(),
        width=16,
        embedding_dim=DIM,
        modalities=modalities or ("image", "text"),
        num_tokens={"image": 4, "text": LONGEST},
        vocabulary=VOCABULARY,
        special=SPECIAL,
        word_vectors=lambda: vectors,
    )


class Fixed(nn.Module):
    """A student whose features are given."""

    def forward(self, inputs: dict[str, Tokens]) -> dict[str, Tensor]:
        return {f"{modality}/features": tokens.values[:, 0] for modality, tokens in inputs.items()}


def drawn(num_rows: int = 5, *, seed: int = 0, modalities: tuple[str, ...] = ("image",)) -> Batch:
    """Captions as a wordpiece tokenizer gives them, [CLS] first and [SEP] last, some with an unknown word."""
    torch.manual_seed(seed)
    words = torch.randint(3, NUM_WORDS, (num_rows, LONGEST))
    words[:, 2][torch.rand(num_rows) < 0.3] = 0
    length = torch.randint(3, LONGEST + 1, (num_rows,))
    words[:, 0] = 1
    words[torch.arange(num_rows), length - 1] = 2
    words[torch.arange(LONGEST) >= length[:, None]] = -1
    inputs = {modality: Tokens(torch.randn(num_rows, 1, DIM)) for modality in (*modalities, "text")}
    return Batch(pair=(modalities[0], "text"), inputs=inputs, words={"text": words})


def built(config: Caption | None = None, *modalities: str) -> CaptionLoss:
    made = (config or Caption(num_words=3, decoder=DECODER)).build(context(*modalities))
    assert isinstance(made, CaptionLoss)
    return made


def evaluate(loss: CaptionLoss, batch: Batch, *, seed: int = 7) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return loss(batch, Forward(Fixed(), batch))


def generated(loss: CaptionLoss, features: dict[str, Tensor], beam: int) -> list[list[int]]:
    return generate(loss.decoder, loss.before(features), loss.categories.banned, beam)


def captions_of(batch: Batch) -> list[list[int]]:
    return [[word for word in row if word not in (-1, *SPECIAL)] for row in batch.words["text"].tolist()]


@pytest.mark.parametrize("straight_through", [False, True])
def test_loss_and_its_gradients_equal_a_float64_loop(straight_through: bool) -> None:
    gumbel = Gumbel(start=0.9, straight_through=straight_through)
    loss, batch = built(Caption(num_words=3, decoder=DECODER, gumbel=gumbel)), drawn()
    found = evaluate(loss, batch)["words"]
    torch.autograd.backward(found)
    gradients = {name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}
    loss.double().zero_grad()
    torch.manual_seed(7)
    noise = -torch.empty(5, 3, NUM_WORDS).exponential_().log().double()
    hidden_of: Any = loss.categories.hidden["image"]
    classify: Any = loss.categories.classify["image"]
    terms: list[Tensor] = []
    for i, caption in enumerate(captions_of(batch)):
        hidden = F.gelu(hidden_of(batch.inputs["image"].values[i, 0].double())).view(3, 16)
        before = []
        for k in range(3):
            logits = classify(hidden[k])
            kept = torch.tensor([v for v in range(NUM_WORDS) if v not in (0, *SPECIAL)])
            weights = ((logits[kept].log_softmax(-1) + noise[i, k, kept]) / 0.9).softmax(-1)
            if straight_through:
                one_hot = F.one_hot(weights.argmax(), len(kept)).double()
                weights = one_hot + weights - weights.detach()
            vector = sum(weights[n] * loss.decoder.table[v] for n, v in enumerate(kept.tolist()))
            assert isinstance(vector, Tensor)
            before.append(loss.decoder.read(vector) + loss.positions["image"][k])
        # One beginning of the caption after the other: nothing that comes later can be seen.
        for t, word in enumerate([*caption, NUM_WORDS]):
            if word != 0:
                told = loss.decoder(torch.stack(before)[None], torch.tensor(caption[:t], dtype=torch.int64)[None])
                terms.append(-told[0, -1].log_softmax(-1)[word])
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-5)
    torch.autograd.backward(expected)
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(gradients[name].double(), parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_word_vectors_are_frozen_and_of_one_size_whatever_the_encoder() -> None:
    loss = built()
    assert not loss.decoder.table.requires_grad
    assert "decoder.table" in loss.state_dict()
    assert float(loss.decoder.table.square().mean()) == pytest.approx(1, abs=1e-5)


def test_draws_are_distributed_as_the_categories() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0])
    gumbel = Gumbel(start=0.7, straight_through=True)
    weights = gumbel.drawn(logits.expand(40_000, 4), torch.tensor(0), noisy=True)
    assert torch.equal(weights.sum(-1), torch.ones(40_000))
    torch.testing.assert_close(weights.mean(0), logits.softmax(-1), atol=0.01, rtol=0)
    soft = Gumbel(start=0.7).drawn(logits.expand(40_000, 4), torch.tensor(0), noisy=True)
    counts = F.one_hot(soft.argmax(-1), 4).float().mean(0)
    torch.testing.assert_close(counts, logits.softmax(-1), atol=0.01, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.2, 5.0), st.floats(0.05, 0.2), st.integers(1, 500))
def test_temperature_falls_by_a_constant_factor_from_start_to_end(start: float, end: float, steps: int) -> None:
    gumbel = Gumbel(start=start, end=end, num_steps=steps)
    found = [float(gumbel.temperature(torch.tensor(step))) for step in (0, steps / 2, steps, 2 * steps)]
    assert found == pytest.approx([start, math.sqrt(start * end), end, end], rel=1e-4)


def test_mixtures_sharpen_as_the_steps_go_by() -> None:
    loss = built(Caption(num_words=3, decoder=DECODER, gumbel=Gumbel(start=2.0, end=0.05, num_steps=3)))
    logits = torch.randn(200, 3, NUM_WORDS)

    def largest() -> float:
        torch.manual_seed(1)
        return float(loss.categories.gumbel.drawn(logits, loss.categories.step, noisy=True).amax(-1).mean())

    sharpness = [largest()]
    for _ in range(4):
        loss.stepped(nn.Identity())
        sharpness.append(largest())
    assert sharpness[0] < sharpness[1] < sharpness[2] < sharpness[3] == sharpness[4]
    assert sharpness[3] > 0.95


def test_straight_through_reads_one_word_and_learns_as_the_mixture_does() -> None:
    logits = torch.randn(6, NUM_WORDS, requires_grad=True)
    table = torch.randn(NUM_WORDS, 4)
    gradients = []
    for straight_through in (False, True):
        torch.manual_seed(5)
        weights = Gumbel(straight_through=straight_through).drawn(logits, torch.tensor(0), noisy=True)
        (gradient,) = torch.autograd.grad((weights @ table).sum(), logits)
        gradients.append(gradient)
    assert bool(((weights == 0) | ((weights - 1).abs() < 1e-6)).all())
    torch.testing.assert_close(gradients[0], gradients[1])


def test_out_of_training_nothing_is_drawn() -> None:
    loss, batch = built().eval(), drawn()
    assert evaluate(loss, batch, seed=1) == evaluate(loss, batch, seed=2)
    loss.train()
    assert evaluate(loss, batch, seed=1) != evaluate(loss, batch, seed=2)


def test_special_and_unknown_words_are_neither_categories_nor_generated() -> None:
    loss = built().eval()
    banned = torch.tensor([0, *SPECIAL])
    with torch.no_grad():
        loss.decoder.head.bias[banned] = 100.0
        loss.categories.classify["image"].bias[banned] = 100.0  # type: ignore[union-attr, index, operator]
    features = torch.randn(4, DIM)
    weights = loss.train().categories("image", features)
    assert float(weights[..., banned].detach().sum()) == 0
    captions = generated(loss.eval(), {"image": features}, beam=2)
    assert all(len(caption) <= LONGEST and not {0, *SPECIAL} & set(caption) for caption in captions)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_a_word_is_told_without_those_behind_it(seed: int) -> None:
    torch.manual_seed(seed)
    decoder = DECODER.build(torch.randn(NUM_WORDS, 5), LONGEST)
    words, before = torch.randint(0, NUM_WORDS, (2, LONGEST)), torch.randn(2, 3, 16)
    place = int(torch.randint(0, LONGEST, ()))
    changed = words.clone()
    changed[:, place:] = (changed[:, place:] + 1) % NUM_WORDS
    first, second = decoder(before, words), decoder(before, changed)
    torch.testing.assert_close(first[:, : place + 1], second[:, : place + 1])
    assert not torch.allclose(first[:, place + 1], second[:, place + 1])
    assert not torch.allclose(first, decoder(before.flip(-1), words))


def test_order_of_the_pairs_changes_nothing() -> None:
    loss, batch = built().eval(), drawn()
    order = torch.tensor([3, 0, 4, 1, 2])
    inputs = {modality: Tokens(tokens.values[order]) for modality, tokens in batch.inputs.items()}
    moved = Batch(pair=batch.pair, inputs=inputs, words={"text": batch.words["text"][order]})
    torch.testing.assert_close(evaluate(loss, batch)["words"], evaluate(loss, moved)["words"])


@pytest.mark.parametrize("beam", [1, 3])
def test_decoder_that_has_overfitted_few_captions_generates_them_exactly(beam: int) -> None:
    gumbel = Gumbel(start=0.5, end=0.1, num_steps=150)
    loss, batch = built(Caption(num_words=2, decoder=DECODER, gumbel=gumbel)), drawn(6)
    batch.words["text"][batch.words["text"] == 0] = 3
    optimizer = torch.optim.AdamW(loss.parameters(), lr=0.01)
    for step in range(250):
        value = evaluate(loss, batch, seed=step)["words"]
        optimizer.zero_grad()
        torch.autograd.backward(value)
        optimizer.step()
        loss.stepped(nn.Identity())
    loss.eval()
    features = {"image": batch.inputs["image"].values[:, 0]}
    assert generated(loss, features, beam) == captions_of(batch)


def test_beam_as_wide_as_all_beginnings_finds_the_likeliest_caption() -> None:
    torch.manual_seed(2)
    decoder = DECODER.build(torch.randn(3, 5), 2)
    before, banned = torch.randn(1, 2, 16), torch.tensor([True, False, False])
    options = [[], *([a] for a in (1, 2)), *([a, b] for a in (1, 2) for b in (1, 2))]

    def score(caption: list[int]) -> float:
        logs = decoder(before, torch.tensor([caption], dtype=torch.int64))[0].log_softmax(-1)
        told = [*caption, decoder.end][:2]  # at the limit a caption ends without being asked
        return sum(float(logs[t, word].detach()) for t, word in enumerate(told))

    assert generate(decoder, before, banned, beam=9) == [max(options, key=score)]


@pytest.mark.parametrize("case", ["identical", "zero", "huge", "bf16", "only special"])
def test_no_nan_at_the_edges(case: str) -> None:
    loss, batch = built(), drawn(2)
    values = batch.inputs["image"].values
    if case == "identical":
        values.copy_(values[:1].expand_as(values).clone())
    elif case == "zero":
        values.zero_()
    elif case == "huge":
        values.mul_(1e12)
    elif case == "only special":
        batch.words["text"].fill_(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "bf16"):
        parts = evaluate(loss, batch)
    assert parts["words"].dtype == torch.float32
    assert torch.isfinite(parts["words"])
    torch.autograd.backward(parts["words"])
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in loss.parameters())


def test_sounds_are_read_beside_images_unless_they_are_left_out() -> None:
    batch = drawn(3, modalities=("image", "audio"))
    modalities = ("image", "audio", "text")
    for sound, num_before in ((True, 6), (False, 3)):
        loss = built(Caption(num_words=3, decoder=DECODER, sound=sound), *modalities)
        read = loss.read(batch.inputs)
        assert read == ["image", "audio"][: 1 + sound]
        features = {modality: batch.inputs[modality].values[:, 0] for modality in read}
        assert loss.before(features).shape == (3, num_before, 16)
        assert torch.isfinite(evaluate(loss, batch)["words"])
    silent = Batch(
        pair=("audio", "text"), inputs={m: batch.inputs[m] for m in ("audio", "text")}, words=batch.words
    )
    assert evaluate(loss, silent) == {}


def test_batch_without_captions_has_no_part() -> None:
    batch = drawn(3)
    assert evaluate(built(), Batch(pair=("image",), inputs={"image": batch.inputs["image"]})) == {}


def test_what_the_objective_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="captions nothing with 8 words"):
        Caption(sound=False).build(context("audio", "text"))
    with pytest.raises(ConfigError, match="captions image with 0 words"):
        Caption().build(Context(student=nn.Identity(), width=4, embedding_dim=4, modalities=("image", "text")))


def test_state_is_whole() -> None:
    batch = drawn(3)
    first, second = built(), built()
    for _ in range(3):
        first.stepped(nn.Identity())
    second.load_state_dict(first.state_dict())
    assert evaluate(first, batch) == evaluate(second, batch)
    assert int(second.categories.step) == 3
