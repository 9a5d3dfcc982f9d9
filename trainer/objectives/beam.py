"""Generation: the likeliest caption that a decoder has for what it reads before it, by beam search."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.objectives.text_decoder import TextDecoder


@torch.no_grad()
def generate(decoder: TextDecoder, before: Tensor, banned: Tensor, beam: int) -> list[list[int]]:
    """Of vectors float [B, K, W], the ids of B captions, without words of `banned` bool [V]; beam 1 is greedy.

    The `beam` likeliest beginnings are kept, and the likeliest of them is the caption.
    """
    num_rows, device = len(before), before.device
    before = before.repeat_interleave(beam, 0)
    words = torch.empty(num_rows, beam, 0, dtype=torch.int64, device=device)
    scores = torch.full((num_rows, beam), -torch.inf, device=device)
    scores[:, 0] = 0.0
    ended = torch.zeros(num_rows, beam, dtype=torch.bool, device=device)
    only_end = torch.full((decoder.end + 1,), -torch.inf, device=device)
    only_end[decoder.end] = 0.0
    for _ in range(decoder.max_words):
        logs = decoder(before, words.flatten(0, 1))[:, -1].log_softmax(-1).unflatten(0, (num_rows, beam))
        logs[..., : decoder.end].masked_fill_(banned, -torch.inf)
        logs = torch.where(ended[..., None], only_end, logs)
        scores, places = (scores[..., None] + logs).flatten(1).topk(beam)
        kept, said = places // (decoder.end + 1), places % (decoder.end + 1)
        words = torch.cat([words.gather(1, kept[..., None].expand(-1, -1, words.shape[2])), said[..., None]], 2)
        ended = ended.gather(1, kept) | (said == decoder.end)
        if ended.all():
            break
    captions = words[torch.arange(num_rows, device=device), scores.argmax(1)]
    return [[word for word in caption if word != decoder.end] for caption in captions.tolist()]
