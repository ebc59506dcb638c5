"""Export of a trained network: as a NIR graph, a PyTorch program, an ONNX model, or its weights alone."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from spikerate.data import Units
from spikerate.measure.evaluate import over_time
from spikerate.rules import BPTT
from spikerate.runs.trained import Trained
from spikerate.system.files import write_whole


def export(trained: Trained, path: Path) -> None:
    """Write a trained network to a file, completely or not at all; the suffix of the file selects the format.

    `.nir`: a graph for other simulators and neuromorphic hardware. `.pt2`: a program of `torch.export`. `.onnx`: the same
    for other runtimes. `.safetensors`: weights and settings, for `spikerate.load`. The metadata of each has the facts about
    the network (classes, T, units) as JSON under the name spikerate.

    Raises:
        ValueError: as `check_target`; or the format does not support an operation of the network, a package is missing, or
            the file can't be written.
    """
    check_target(path)
    content = _KINDS[path.suffix](trained)
    try:
        write_whole(path, content)
    except OSError as error:
        raise ValueError(f"{path} can't be written ({error.strerror}): give another place") from error


def check_target(path: Path) -> None:
    """Raise `ValueError` if the suffix is not a format of export, the file exists already, or its folder does not exist."""
    if path.suffix not in _KINDS:
        raise ValueError(f"{path} does not end in {', '.join(_KINDS)}: the suffix selects the format")
    if path.exists() or path.is_symlink():
        raise ValueError(f"{path} already exists: give another name, or remove it")
    if not path.parent.is_dir():
        raise ValueError(f"the folder {path.parent} does not exist: make it, or give another")


class Inference(nn.Module):
    """T time steps of a spiking network as one function of tensors, without gradient. The network is not copied.

    Call: images [B, C, H, W], shown at every step, or frames [B, T, C, H, W] -> the mean of the logits [B, K], as `BPTT()`
    computes it.

    Args:
        network: a spiking network in evaluation mode.
        T: time steps.
    """

    def __init__(self, network: nn.Module, T: int) -> None:
        super().__init__()
        self.network = network
        self.T = T

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return BPTT()(self.network, over_time(x, self.T)).rate


class _Normalized(nn.Module):
    """Scales and normalises samples as they are stored (pixels from 0 to 255, for instance) for the network."""

    def __init__(self, units: Units) -> None:
        super().__init__()
        self.units = units

    def forward(self, x: Tensor) -> Tensor:
        return self.units.normalize(self.units.scale(x))


def as_program(function: nn.Module, sample_shape: Sequence[int]) -> torch.export.ExportedProgram:
    """The program of a function of samples [B, ...] in float32, for any B, and for a fixed T and shape of a sample.

    Args:
        function: an `Inference`, or a module that contains one.
        sample_shape: [C, H, W] or [T, C, H, W].

    Raises:
        TypeError: the network has an operation without a rule for signals.
    """
    example = torch.zeros(2, *sample_shape)
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    with torch.no_grad():  # otherwise each no_grad inside would become a separate program
        program = torch.export.export(function.eval(), (example,), dynamic_shapes=dynamic)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it has paths of this machine, and takes a third of the file
    return program


def _program(trained: Trained) -> torch.export.ExportedProgram:
    function = nn.Sequential(_Normalized(trained.card.units), Inference(trained.network, trained.card.T))
    return as_program(function, trained.card.sample_shape)


def _pt2(trained: Trained) -> bytes:
    content = io.BytesIO()
    torch.export.save(_program(trained), content, extra_files={"spikerate": json.dumps(trained.facts())})
    return content.getvalue()


def _onnx(trained: Trained) -> bytes:
    with _of_extra("onnx"):
        import onnxscript  # noqa: F401  # torch.onnx needs it, and has its own message if it is missing
    with _quiet():
        model = torch.onnx.export(
            _program(trained),
            dynamo=True,
            verbose=False,
            input_names=["samples"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
        )
    assert model is not None
    model.model.metadata_props["spikerate"] = json.dumps(trained.facts())
    return model.model_proto.SerializeToString()


def _nir(trained: Trained) -> bytes:
    with _of_extra("nir"):
        from spikerate.exchange.nir import pack_nir, to_nir
    return pack_nir(to_nir(trained.network, trained.card.shape, metadata={"spikerate": json.dumps(trained.facts())}))


@contextlib.contextmanager
def _of_extra(name: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"a .{name} file takes the package {error.name}: pip install 'spikerate[{name}]'") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's messages about optional packages."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


_KINDS: dict[str, Callable[[Trained], bytes]] = {".nir": _nir, ".pt2": _pt2, ".onnx": _onnx, ".safetensors": Trained.pack}
