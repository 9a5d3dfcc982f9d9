"""One process of several, or the only one: takes steps of recipes and writes down what they leave.

    python rank.py JOB.json RANK NUM

JOB {"store": path, "recipes": {name: tree}, "num_steps": n, "folder": where the processes meet and write}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from contract import config
from contract.storage import store_path
from trainer import runs
from trainer.device import Device
from trainer.ranks import Ranks
from trainer.recipes import Recipe
from trainer.state import State
from trainer.step import take_step

CPU = Device(name="cpu", precision="float32")


def steps(job: dict[str, Any], tree: dict[str, Any], ranks: Ranks) -> list[dict[str, Any]]:
    """After each step: the parts of the loss, the gradients, what the objectives keep, and the weights."""
    recipe = config.parse(tree, Recipe, source="test")
    run = runs.begin(recipe, [store_path(job["store"])], Path("unused")).shared(ranks)
    state = State(recipe, run.streams, CPU, ranks)
    state.student.train()
    batches = (run.streams.read(number).to("cpu") for number in range(job["num_steps"] * recipe.accumulate))
    found = []
    for _ in range(job["num_steps"]):
        step = take_step(state, recipe, batches, recipe.optimizer.learning_rate)
        modules = {"student": state.student, "objectives": state.objectives}
        found.append(
            {
                "parts": step.parts,
                "num_rows": step.num_rows,
                "gradients": {
                    f"{module}.{name}": parameter.grad.clone()
                    for module, parent in modules.items()
                    for name, parameter in parent.named_parameters()
                    if parameter.grad is not None
                },
                "kept": {name: value.clone() for name, value in state.objectives.state_dict().items()},
                "weights": {name: value.clone() for name, value in state.student.state_dict().items()},
            }
        )
    return found


def main() -> None:
    """Do the job."""
    job, rank, num = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]), int(sys.argv[3])
    folder = Path(job["folder"])
    if num > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{num}", rank=rank, world_size=num)
    ranks = Ranks(rank=rank, num=num)
    found = {name: steps(job, tree, ranks) for name, tree in job["recipes"].items()}
    torch.save(found, folder / f"found-{rank}-of-{num}.pt")
    if num > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
