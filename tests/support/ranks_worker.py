"""One training step and one evaluation in float64, by as many processes as torchrun starts; rank 0 writes what came out."""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from spikerate import BPTT, Dspike, RateBP, Search, SelfDistillation, adapt
from spikerate.cli.main import main as spikerate
from spikerate.data import Data, Part, load
from spikerate.models import synchronize_batch_norm
from spikerate.runs.config import Model, Neuron, Run
from spikerate.runs.experiment import measure
from spikerate.runs.optim import SGD, AdamW, Muon
from spikerate.runs.record import RunFolder
from spikerate.runs.state import State
from spikerate.runs.train import Outputs, Trainer, build_network
from spikerate.system.dist import process_group
from support.agents import serve
from support.runs import Silent

CPU = torch.device("cpu")
RULES = [BPTT(), BPTT(chunk=1), RateBP(), RateBP(chunk=1), RateBP(chunk=2)]


def main(out: str) -> None:
    digits = load(Data("digits"), 1)
    found: dict[str, torch.Tensor] = {}
    with process_group(gpu=False, slow_start=False) as ranks:
        for rule, size, accumulate in [*itertools.product(RULES, (16, 19), (1,)), (RateBP(), 19, 2)]:
            run = Run(model=Model(width=2), rule=rule, loss=SelfDistillation(), T=3, accumulate=accumulate)
            torch.manual_seed(0)
            network = synchronize_batch_norm(build_network(run, 10, (1, 8, 8), CPU).double(), ranks.total)
            trainer = Trainer(run, digits, RunFolder(Path(out)), Silent(), ranks)
            state = State(network, run.optim.build(network))
            forward = ranks.wrap(Outputs(network, rule))
            x, y = torch.rand(size, 1, 8, 8).double() * 3, torch.arange(size) % 10
            edges = [size * k // accumulate for k in range(accumulate + 1)]
            parts = [Part(x[a:b][ranks.share(b - a)], y[a:b]) for a, b in itertools.pairwise(edges)]
            terms = trainer._step(state, forward, parts, careful=True)
            case = f"{rule} batch {size} in {accumulate}"
            found |= {f"{case}: {name}": value.clone() for name, value in network.state_dict().items()}
            found |= {f"{case}: term {name}": value for name, value in terms.items()}
            if accumulate == 1 and rule == RateBP():
                look: Any = lambda network, x: BPTT()(network, x.double())  # noqa: E731
                validation = trainer._validation(network, digits, CPU, look)
                found[f"validation {size}"] = torch.tensor([validation.right, validation.n])
        single = build_network(run, 10, (1, 8, 8), CPU)
        tested = measure(single, replace(digits, test=digits.test[torch.arange(23)]), run, ranks)
        found["test"] = torch.tensor([tested.accuracy.n, *tested.ledger.chances.values()])
        found["firing"] = torch.tensor(list(tested.ledger.rates_at_step(single).values()), dtype=torch.float64)
        costs = tested.energy.layers.values()
        found["operations"] = torch.tensor([(c.macs, c.acs, c.dense) for c in costs], dtype=torch.float64)
        for optim in (AdamW(lr=0.01, clip=1.0, ema=0.9), Muon(ema=0.9)):
            run = Run(model=Model(width=2), optim=optim, T=2, batch=300, epochs=1)
            folder = RunFolder(Path(f"{out}-{type(optim).__name__}"))
            if ranks.first:
                RunFolder.create(folder.path, run, {})
            trained = Trainer(run, digits, folder, Silent(), ranks).train()
            same = [ranks.total(value) == ranks.n * value for value in trained.trained.state_dict().values()]
            same += [ranks.total(value) == ranks.n * value for value in trained.network.parameters()]
            found[f"ranks agree: {type(optim).__name__}"] = torch.stack([one.all() for one in same])
        for optim in (AdamW(lr=0.01, clip=0.5), SGD(nesterov=True, clip=0.5)):
            run = Run(model=Model(width=2), optim=optim, T=2)
            torch.manual_seed(0)
            network = synchronize_batch_norm(build_network(run, 10, (1, 8, 8), CPU).double(), ranks.total)
            state, forward = State(network, optim.build(network)), ranks.wrap(Outputs(network, run.rule))
            x, y = torch.rand(16, 1, 8, 8).double() * 3, torch.arange(16) % 10
            trainer = Trainer(run, digits, RunFolder(Path(out)), Silent(), ranks)
            for _ in range(2):
                trainer._step(state, forward, [Part(x[ranks.share(16)], y)], careful=False)
            found |= {f"{optim}: {name}": value.clone() for name, value in network.state_dict().items()}
        seeking = adapt(Model(width=2).build(10, (1, 8, 8), Neuron(surrogate=Dspike()))).double()
        x = torch.rand(6, 1, 8, 8).double().expand(2, -1, -1, -1, -1)
        for search in (Search(), Search(directions=7)):
            row = search(seeking, BPTT(), x, torch.arange(6), seed=1, ranks=ranks)
            found[f"{search}"] = torch.tensor(list(row.values()), dtype=torch.float64)
        if ranks.first:
            torch.save(found, out)


def work(arguments: list[str]) -> None:
    """`spikerate ARGUMENTS`, or the comparison where the only argument is the file for it."""
    if len(arguments) == 1:
        main(arguments[0])
    else:
        sys.exit(spikerate(arguments))


def launch(ranks: int, restarts: int, folder: str, arguments: list[str]) -> None:
    os.chdir(folder)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        start_method="fork",
        monitor_interval=0.1,
    )
    elastic_launch(config, work)(arguments)
    print("all ranks have ended well", flush=True)


if __name__ == "__main__":
    serve(launch)
