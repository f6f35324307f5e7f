"""Trains a small byte-level transformer under a pipeline schedule: a script to start from.

    python examples/train.py                                                     # one process, one rank
    torchrun --nproc-per-node 2 examples/train.py --schedule dualpipev           # a process a rank
    torchrun --nproc-per-node 4 examples/train.py --schedule dualpipe --resume runs/step-000100.pt

A checkpoint goes on under any schedule and any number of processes. The hyperparameters are not tuned.
"""

from __future__ import annotations

import argparse
import logging
import os
import sysconfig
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

import dualpipe_rs as dp

WIDTH, HEADS, DEPTH, CONTEXT = 64, 4, 8, 64
SEQUENCES = 2  # of a microbatch

log = logging.getLogger("train")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, help="a file of text; else the standard library's modules")
    parser.add_argument("--schedule", default="dualpipev", choices=dp.schedule_names())
    parser.add_argument("--microbatches", type=int, default=8, help="of a pipeline step")
    parser.add_argument("--accumulate", type=int, default=2, help="pipeline steps of an optimizer step")
    parser.add_argument("--steps", type=int, default=100, help="of the optimizer, those before a resume too")
    parser.add_argument("--lr", type=float, default=1e-3, help="greatest learning rate")
    parser.add_argument("--clip", type=float, default=1.0, help="greatest norm of the gradient")
    parser.add_argument("--every", type=int, default=20, help="steps between evaluations and checkpoints")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of checkpoints")
    parser.add_argument("--resume", type=Path, help="a checkpoint to go on from")
    return parser.parse_args()


class Embed(nn.Module):
    """Bytes, shape (sequences, bytes) -> vectors, shape (sequences, bytes, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.byte, self.place = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.byte(tokens) + self.place(torch.arange(tokens.shape[1], device=tokens.device))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1))
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def build() -> nn.Sequential:
    torch.manual_seed(0)  # the same model on every rank
    blocks = [Block() for _ in range(DEPTH)]
    return nn.Sequential(Embed(), *blocks, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def read(path: Path | None) -> Tensor:
    """A file's bytes, or those of the standard library's modules."""
    files = [path] if path else sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8)


class Trainer:
    """One rank of the run."""

    def __init__(self, args: argparse.Namespace, rank: int, ranks: int, device: torch.device) -> None:
        self.args, self.rank, self.device = args, rank, device
        text = read(args.data)
        self.train_text, self.valid_text = text.split([len(text) - len(text) // 10, len(text) // 10])
        if len(self.valid_text) <= CONTEXT:
            raise SystemExit(f"the text has {len(text)} bytes; it takes {10 * (CONTEXT + 1)} to train")
        self.schedule = dp.schedule(args.schedule, ranks, args.microbatches)
        stages = dp.partition(build(), self.schedule.num_stages)
        held = [stages[stage].to(device) for stage in self.schedule.stages_of(rank)]
        self.pipe = dp.Pipeline(held, self.schedule)
        self.optimizer = torch.optim.AdamW(self.pipe.parameters(), lr=args.lr, weight_decay=0.1)
        self.scheduler = OneCycleLR(self.optimizer, args.lr, args.steps, cycle_momentum=False)
        self.done = 0

    def run(self) -> None:
        while self.done < self.args.steps:
            loss, norm = self.train()
            self.done += 1
            bubble = 100 * self.pipe.timeline.bubble_ratio
            log.info("step %d loss %.6f norm %.3f bubble %.1f%%", self.done, loss, norm, bubble)
            if self.done % self.args.every == 0 or self.done == self.args.steps:
                log.info("step %d validation loss %.6f", self.done, self.evaluate())
                self.save()

    def train(self) -> tuple[float, float]:
        """One step of the optimizer: the mean loss, and the norm of the gradient."""
        parts = self.args.accumulate
        losses = [self.step(self.train_text, parts * self.done + i, 1 / parts) for i in range(parts)]
        self.pipe.sync_gradients()
        norm = self.pipe.clip_grad_norm_(self.args.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        return sum(losses) / parts, norm.item()

    @torch.no_grad()
    def evaluate(self, batches: int = 4) -> float:
        self.pipe.eval()
        losses = [self.step(self.valid_text, seed, 1.0) for seed in range(batches)]
        self.pipe.train()
        return sum(losses) / batches

    def step(self, text: Tensor, seed: int, scale: float) -> float:
        """Forwards, and unless under no_grad backwards, of a batch that ``seed`` draws; its mean loss."""
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(
            len(text) - CONTEXT, (self.args.microbatches * SEQUENCES,), generator=generator
        )
        windows = text[starts[:, None] + torch.arange(CONTEXT + 1)].long().to(self.device)
        losses, _ = self.pipe.step(
            self.at(0, windows[:, :-1]),
            criterion=loss_of,
            labels=self.at(self.schedule.num_stages - 1, windows[:, 1:]),
            loss_scale=scale / self.args.microbatches,  # gradients are summed over microbatches
            gather_loss=True,
        )
        return losses.mean().item()

    def at(self, stage: int, batch: Tensor) -> Tensor | None:
        """What of a batch this rank gives: the microbatches that pass ``stage`` here."""
        parts = batch.chunk(self.args.microbatches)
        here = [part for m, part in enumerate(parts) if self.schedule.rank_of(stage, m) == self.rank]
        return torch.cat(here) if here else None

    def save(self) -> None:
        """All ranks gather, one writes. A run that dies here leaves the last whole file."""
        state = {
            "model": self.pipe.state_dict(),
            "optimizer": self.pipe.optimizer_state_dict(self.optimizer),
            "scheduler": self.scheduler.state_dict(),
            "done": self.done,
        }
        if self.rank == 0:
            path = self.args.out / f"step-{self.done:06}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, part := path.with_suffix(".part"))
            os.replace(part, path)
            log.info("saved %s", path)

    def resume(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.pipe.load_state_dict(state["model"])
        self.pipe.load_optimizer_state_dict(self.optimizer, state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.done = state["done"]


def main() -> None:
    args = parse()
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    level = logging.WARNING if rank else logging.INFO
    logging.basicConfig(level=level, format=f"%(asctime)s rank {rank}: %(message)s")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if ranks > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    trainer = Trainer(args, rank, ranks, device)
    if args.resume:
        trainer.resume(args.resume)
    trainer.run()
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
