"""Train small data2vec teachers of scenes' images, captions and sounds, where no published ones can be had.

    python examples/train_data2vec_scenes.py OUT [image text audio] [--data-root data/scenes] [--device cuda]

What they are: under a million weights each (width 128, 4 blocks), of the 3,000 training scenes alone: their images
of 64x64 in patches of 8x8, their 45,000 captions in three languages in words, a second of sound in frames of 20 ms.
They are none of the published teachers, which are a hundred times as large; they are self-supervised as these are.

data2vec (Baevski et al. 2022, arXiv 2202.03555): the student reads an item with a part of its tokens hidden and
regresses the targets of those, which an exponential moving average of it makes of the whole item: the mean of the
normalised outputs of the last three feed-forward networks. Deviations, beside the sizes: one schedule, one beta of
the smooth-L1 loss and one share of hidden tokens, in runs of a modality's own length, for all three.

Writes OUT/image, OUT/text, OUT/audio as transformers keeps models, for encoders of kind data2vec_image and so on,
with `k: 3`. Labels are read for the accuracy that is printed alone, that of neighbours among training scenes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import (
    BeitImageProcessorPil,
    BertTokenizerFast,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    Data2VecTextConfig,
    Data2VecTextModel,
    Data2VecVisionConfig,
    Data2VecVisionModel,
    Wav2Vec2FeatureExtractor,
)

from encoders.data2vec.targets import settle
from encoders.outputs import Caught
from encoders.waveforms import keep_positions_exact
from pipeline.sources.scenes import Scenes
from pipeline.sources.scenes.render import render

WIDTH, DEPTH, K = 128, 4, 3
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "intermediate_size": 4 * WIDTH,
}
PATCH, SIZE, MAX_TOKENS, RATE_HZ = 8, 64, 32, 16_000
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, CLS, SEP, MASK = (SPECIAL.index(token) for token in ("[PAD]", "[CLS]", "[SEP]", "[MASK]"))
BATCH, LEARNING_RATE, WEIGHT_DECAY, WARMUP, BETA = 64, 1e-3, 0.05, 0.1, 2.0
# The average's decay, from the first to the last over this share of the steps.
DECAY, LAST_DECAY, RISE = 0.99, 0.999, 0.5
HIDDEN = 0.5  # the share of the tokens, in expectation
NUM_QUERIES, NUM_BANK, MEASURED_EVERY = 500, 2000, 250
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Modality:
    """Its untrained model, and its items, one or several of each scene.

    `inputs` gives what the model takes of the items of these numbers; `hidden` the same with places hidden, and
    these, bool [B, T]. `real` bool [B, T] is which tokens an item has. `num_before` tokens are no part of T.
    """

    model: Any
    keep: Callable[[Path], object]
    scene: Tensor
    inputs: Callable[[Tensor], Inputs]
    hidden: Callable[[Inputs], tuple[Inputs, Tensor]]
    real: Callable[[Inputs], Tensor | None]
    feed_forward: str
    num_before: int = 0


def images(scenes: list[dict[str, Any]], root: Path) -> Modality:
    """Patches of pictures, which are mirrored at random."""
    config = Data2VecVisionConfig(
        **SIZES,
        image_size=SIZE,
        patch_size=PATCH,
        use_absolute_position_embeddings=True,
        use_mask_token=True,
        use_mean_pooling=True,
        layer_scale_init_value=0.0,
        hidden_dropout_prob=0.0,
        drop_path_rate=0.0,
    )
    model = Data2VecVisionModel._from_config(config, attn_implementation="eager")
    for values in (model.embeddings.position_embeddings, model.embeddings.cls_token):
        nn.init.trunc_normal_(values, std=0.02)
    pictures = [np.asarray(Image.open(root / "images" / f"{scene['id']}.png")) for scene in scenes]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    processor = BeitImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )

    def inputs(rows: Tensor) -> Inputs:
        return {"pixel_values": pixels[rows].float() / 127.5 - 1}

    def hidden(whole: Inputs) -> tuple[Inputs, Tensor]:
        grid = SIZE // PATCH
        # Blocks of 2x2 patches.
        coarse = torch.rand(len(whole["pixel_values"]), grid // 2, grid // 2) < HIDDEN
        places = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
        return whole | {"bool_masked_pos": places}, places

    feed_forward = "encoder.layer.{}.output"
    return Modality(
        model,
        processor.save_pretrained,
        torch.arange(len(scenes)),
        inputs,
        hidden,
        lambda _: None,
        feed_forward,
        num_before=1,
    )


def texts(scenes: list[dict[str, Any]], _: Path) -> Modality:
    """Words of captions in every language."""
    of_scene = [[text for texts in scene["captions"].values() for text in texts] for scene in scenes]
    captions = [text for texts in of_scene for text in texts]
    blank = BertTokenizerFast(vocab={token: number for number, token in enumerate(SPECIAL)}).backend_tokenizer
    words = {
        word
        for text in captions
        for word, _ in blank.pre_tokenizer.pre_tokenize_str(blank.normalizer.normalize_str(text))
    }
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *sorted(words)))}
    tokenizer = BertTokenizerFast(vocab=vocabulary)
    config = Data2VecTextConfig(
        **SIZES,
        vocab_size=len(vocabulary),
        pad_token_id=PAD,
        max_position_embeddings=MAX_TOKENS + PAD + 1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = Data2VecTextModel._from_config(config, attn_implementation="eager")
    ids = tokenizer(captions, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")[
        "input_ids"
    ]

    def inputs(rows: Tensor) -> Inputs:
        drawn = ids[rows]
        drawn = drawn[:, : int((drawn != PAD).sum(1).max())]
        return {"input_ids": drawn, "attention_mask": (drawn != PAD).long()}

    def hidden(whole: Inputs) -> tuple[Inputs, Tensor]:
        is_word = ~torch.isin(whole["input_ids"], torch.tensor([PAD, CLS, SEP], device=whole["input_ids"].device))
        places = is_word & (torch.rand(is_word.shape, device=is_word.device) < HIDDEN)
        return whole | {"input_ids": whole["input_ids"].masked_fill(places, MASK)}, places

    numbers = torch.repeat_interleave(torch.arange(len(scenes)), torch.tensor([len(texts) for texts in of_scene]))
    feed_forward = "encoder.layer.{}.output.dense"
    return Modality(
        model,
        tokenizer.save_pretrained,
        numbers,
        inputs,
        hidden,
        lambda whole: whole["attention_mask"].bool(),
        feed_forward,
    )


def sounds(scenes: list[dict[str, Any]], root: Path) -> Modality:
    """Frames of 20 ms."""
    config = Data2VecAudioConfig(
        **SIZES,
        conv_dim=(64,) * 7,
        num_conv_pos_embeddings=3,
        conv_pos_kernel_size=9,
        num_conv_pos_embedding_groups=8,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
    )
    model = Data2VecAudioModel._from_config(config, attn_implementation="eager")
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE_HZ, do_normalize=True)
    waves = [soundfile.read(root / "sounds" / f"{scene['id']}.flac", dtype="float32")[0] for scene in scenes]
    samples = torch.from_numpy(
        np.stack([extractor(wave, sampling_rate=RATE_HZ).input_values[0] for wave in waves]).astype(np.float32)
    )
    num_frames = int(model._get_feat_extract_output_lengths(samples.shape[1]))

    def inputs(rows: Tensor) -> Inputs:
        return {"input_values": samples[rows]}

    def hidden(whole: Inputs) -> tuple[Inputs, Tensor]:
        span = 5  # frames
        starts = torch.rand(len(whole["input_values"]), num_frames) < 1 - (1 - HIDDEN) ** (1 / span)
        places = F.max_pool1d(F.pad(starts.float(), (span - 1, 0)), span, stride=1) > 0
        return whole | {"mask_time_indices": places}, places

    feed_forward = "encoder.layers.{}.feed_forward"
    return Modality(
        model,
        extractor.save_pretrained,
        torch.arange(len(scenes)),
        inputs,
        hidden,
        lambda _: None,
        feed_forward,
    )


MODALITIES = {"image": images, "text": texts, "audio": sounds}


class Teacher:
    """The student, and the average of it that is its teacher."""

    def __init__(self, name: str, modality: Modality, num_steps: int, device: str) -> None:
        self.modality, self.num_steps, self.device, self.step = modality, num_steps, device, 0
        self.student = modality.model.to(device).train()
        self.head = nn.Linear(WIDTH, WIDTH).to(device)
        self.average = deepcopy(self.student).eval().requires_grad_(requires_grad=False)
        for model in (self.student, self.average):
            keep_positions_exact(model, device)
        chosen = SimpleNamespace(targets="topk_mean", k=K, normalise="layer", version=1)
        self.wanted = settle(chosen, name, DEPTH)
        self.caught = Caught(self.average, self.wanted.modules("", modality.feed_forward))
        learned = [*self.student.parameters(), *self.head.parameters()]
        groups = [
            {"params": [p for p in learned if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)

    def learn(self, rows: Tensor) -> dict[str, float]:
        """One step on these items; the loss, and how much targets and predictions differ between tokens."""
        whole = self.inputs(rows)
        seen, places = self.modality.hidden(whole)
        places = places.to(self.device)
        num_before = self.modality.num_before
        with torch.autocast(self.device, torch.bfloat16):
            with torch.no_grad():
                self.caught.clear()
                self.average(**whole)
                targets = self.wanted.of(self.caught, num_before=num_before, mask=self.modality.real(whole))[places]
            seen = {key: values.to(self.device) for key, values in seen.items()}
            predicted = self.head(self.student(**seen).last_hidden_state[:, num_before:][places]).float()
        loss = F.smooth_l1_loss(predicted, targets, beta=BETA)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.student.parameters(), 3.0)
        progress = self.step / self.num_steps
        rate = min(progress / WARMUP, 0.5 * (1 + np.cos(np.pi * max(0.0, progress - WARMUP) / (1 - WARMUP))))
        for group in self.optimizer.param_groups:
            group["lr"] = float(LEARNING_RATE * rate)
        self.optimizer.step()
        decay = DECAY + (LAST_DECAY - DECAY) * min(1.0, progress / RISE)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.student.parameters()), 1 - decay)
        self.step += 1
        spreads = (values.detach().std(0).mean().item() for values in (targets, predicted))
        return {"loss": loss.item(), **dict(zip(("target spread", "prediction spread"), spreads, strict=True))}

    def inputs(self, rows: Tensor) -> Inputs:
        """On the device."""
        return {key: values.to(self.device) for key, values in self.modality.inputs(rows).items()}

    @torch.no_grad()
    def features(self, rows: Tensor) -> Tensor:
        """The mean of the teacher's last tokens, float32 [n, W], unit length."""
        found = []
        for chunk in rows.split(250):
            whole = self.inputs(chunk)
            tokens = self.average(**whole).last_hidden_state[:, self.modality.num_before :].float()
            real = self.modality.real(whole)
            weight = torch.ones(tokens.shape[:2], device=tokens.device) if real is None else real.float()
            found.append(F.normalize((tokens * weight[..., None]).sum(1), dim=-1).cpu())
        return torch.cat(found)

    def accuracy(self, labels: Tensor) -> float:
        """Percent of items of some scenes whose nearest neighbour among those of others is of their class."""
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        first = torch.from_numpy(np.unique(self.modality.scene, return_index=True)[1])  # item of each scene
        queries, bank = order[:NUM_QUERIES], order[NUM_QUERIES : NUM_QUERIES + NUM_BANK]
        nearest = (self.features(first[queries]) @ self.features(first[bank]).T).argmax(1)
        return 100 * (labels[bank][nearest] == labels[queries]).float().mean().item()

    def keep(self, folder: Path) -> None:
        """Write the model and its preprocessing."""
        self.average.save_pretrained(folder)
        self.modality.keep(folder)


def main() -> None:
    """Train each that is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("modalities", nargs="*", metavar="MODALITY", help="default: image text audio")
    parser.add_argument("--data-root", type=Path, default=Path("data/scenes"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    names = options.modalities or list(MODALITIES)
    if unknown := sorted(set(names) - set(MODALITIES)):
        parser.error(f"no modality {', '.join(unknown)}: there are {', '.join(MODALITIES)}")
    scenes = [scene for scene in render(Scenes(), options.data_root) if scene["split"] == "train"]
    labels = torch.tensor([scene["label"] for scene in scenes])
    for name in names:
        if (options.out / name).exists():
            print(f"{name}: {options.out / name} is there")
            continue
        torch.manual_seed(0)
        teacher = Teacher(name, MODALITIES[name](scenes, options.data_root), options.steps, options.device)
        print(f"{name}: untrained any@1 {teacher.accuracy(labels):.1f}", flush=True)
        started, found = time.monotonic(), []
        while teacher.step < options.steps:
            found.append(teacher.learn(torch.randint(len(teacher.modality.scene), (BATCH,))))
            if teacher.step % MEASURED_EVERY == 0 or teacher.step == options.steps:
                shown = ", ".join(f"{key} {np.mean([step[key] for step in found]):.4f}" for key in found[0])
                found = []
                print(
                    f"{name}: step {teacher.step}: {shown}, any@1 {teacher.accuracy(labels):.1f}, "
                    f"{time.monotonic() - started:.0f} s",
                    flush=True,
                )
        teacher.keep(options.out / name)


if __name__ == "__main__":
    main()
