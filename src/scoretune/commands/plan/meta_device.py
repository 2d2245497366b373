"""A model without weights: its modules on the meta device, built from config files alone."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from scoretune.core import hub
from scoretune.core.config import Run
from scoretune.core.errors import UserError, first_line
from scoretune.models import catalog, folders
from scoretune.models.base import Pipelined
from scoretune.models.quantized import Quantization, WidenedLinear, bytes_of
from scoretune.models.recycled import inner
from scoretune.policy import Policy
from scoretune.training import build

META = torch.device("meta")
Linear = tuple[int, int, torch.dtype]
"""The outputs and inputs of a linear layer's weight, and its precision."""
SLOPES = "slope_decoder"
"""What `weights_of` calls the decoder that gradients go through."""
DESCRIPTIONS = ["*.json", "*.txt", "*.model"]  # of a pipeline: all but its weights


def meta_policy(run: Run) -> Policy:
    """The policy of a run as training would build it, without weights: it has shapes only.

    Hub ids are looked for in the cache alone. A network of one's own is small, and loaded. Raises
    UserError for what is not there, or cannot be built from its configs.
    """
    off = {"compile": False, "channels_last": False, "offload": False}
    plain = run.hardware.model_copy(update=off)
    run = run.model_copy(update={"hardware": plain})
    source = catalog.resolve(run.model.source)
    if source.kind != "pipeline":
        policy = build.build_policy(run, torch.device("cpu"))
        catalog.move(policy.backbone, META)
        return policy
    model = source.settings(run.model)
    model = model.model_copy(update={"source": folder_of(source.where, model.revision)})
    run = run.model_copy(update={"model": model})
    return build.build_policy(run, META, loader=meta_pipeline)


def folder_of(source: str, revision: str | None = None) -> str:
    """Where a pipeline's configs are: the folder itself, or the cached files of a hub id.

    Raises UserError for a hub id that is not cached.
    """
    if hub.is_local(source):
        return source
    from huggingface_hub import snapshot_download

    try:
        return str(
            snapshot_download(
                source, revision=revision, allow_patterns=DESCRIPTIONS, local_files_only=True
            )
        )
    except Exception as error:  # not an id, or none that is cached: each has its own kind
        raise UserError(
            f"{source!r} is no folder and is not in the cache: its configs are read, nothing is "
            f"downloaded; get them by: {fetching(source, revision)}"
        ) from error


def fetching(source: str, revision: str | None = None) -> str:
    """The command that downloads the configs of a hub id."""
    at = f" --revision {revision}" if revision else ""
    return f"hf download {source}{at}" + "".join(f" --include '{one}'" for one in DESCRIPTIONS)


def meta_pipeline(
    kind: str,
    source: str,
    *,
    revision: str | None,
    dtype: torch.dtype,
    without: Sequence[str] = (),
    quantize: Quantization | None = None,
) -> Any:
    """As `folders.load_pipeline`, with parts that have shapes and no numbers.

    Raises UserError for a part that cannot be built from its config.
    """
    import diffusers

    index = folders.described(source, revision)
    made = getattr(diffusers, kind)
    expected, optional = made._get_signature_keys(made)
    parts: dict[str, Any] = {}
    for name, place in index.items():
        if name in optional and not isinstance(place, list):
            parts[name] = place
        elif name in expected and isinstance(place, list):
            absent = name in without or place[0] is None
            parts[name] = None if absent else _part(Path(source) / name, *place, dtype=dtype)
            if quantize is not None and not absent and quantize.covers(name):
                _pack(parts[name], quantize.format)
    return made(**{name: None for name in expected if name not in optional} | parts)


def _part(folder: Path, library: str, kind: str, *, dtype: torch.dtype) -> Any:
    try:
        made = getattr(importlib.import_module(library), kind)
        if not issubclass(made, nn.Module):
            return made.from_pretrained(folder)  # a scheduler's table has numbers
        with META:
            return _cast(_module(made, folder, library), dtype).requires_grad_(False).eval()
    except Exception as error:  # a class or a config that this version does not know
        raise UserError(
            f"cannot build {kind} from {str(folder)!r} ({first_line(error)}): its configs are "
            "incomplete, or it needs another version of its library"
        ) from error


def _module(made: Any, folder: Path, library: str) -> nn.Module:
    if library == "diffusers":
        return made.from_config(made.load_config(folder))  # type: ignore[no-any-return]
    config = made.config_class.from_dict(json.loads((folder / "config.json").read_text()))
    return made(config)  # type: ignore[no-any-return]


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """To a precision, but for what the library keeps in float32 where the precision is fp16."""
    kept = (getattr(module, "_keep_in_fp32_modules", None) or []) if dtype is torch.float16 else []
    for name, parameter in module.named_parameters():
        if not set(kept) & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)
    return module


def _pack(network: nn.Module, format: str) -> None:
    """Give the linear layers weights of the same shape that take what quantised ones take."""
    for layer in _linear_layers(network):
        weight = layer.weight
        outputs, inputs = weight.shape
        size = bytes_of(format, outputs, inputs, weight.dtype) / weight.element_size()
        storage = torch.empty(round(size), dtype=weight.dtype, device=META)
        layer.weight = nn.Parameter(storage.as_strided(weight.shape, (0, 0)), False)
        layer.__class__ = _Packed


def _linear_layers(network: nn.Module) -> list[nn.Linear]:
    """The frozen layers that the libraries quantise: not what they keep in float32, and of
    transformers not the last one and that of the outputs."""
    import transformers

    modules = dict(network.named_modules())
    left = set(getattr(network, "_keep_in_fp32_modules", None) or [])
    if isinstance(network, transformers.PreTrainedModel):
        head = network.get_output_embeddings()
        last = {name for name, each in modules.items() if each is head} | {[*modules][-1]}
        left = last | (left if network.dtype is torch.float16 else set())
    return [
        layer
        for name, layer in modules.items()
        if type(layer) is nn.Linear
        and not layer.weight.requires_grad
        and not left & {name, *name.split(".")}
    ]


def linears_of(policy: Policy) -> dict[str, tuple[Linear, ...]]:
    """Of each part of a pipeline the weights that its library would quantise."""
    backbone = inner(policy.backbone)
    if not isinstance(backbone, Pipelined):
        return {}
    parts = backbone.pipeline.components.items()
    return {
        name: tuple((*each.weight.shape, each.weight.dtype) for each in _linear_layers(part))
        for name, part in parts
        if isinstance(part, nn.Module) and name != "vae"
    }


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, _wide(weight).to(x.dtype), bias)


def _wide(weight: Tensor) -> Tensor:
    return torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)


class _Packed(WidenedLinear):
    """The same on a weight without numbers, which takes what a quantised one takes."""

    multiply = staticmethod(_multiplied)
    widen = staticmethod(_wide)


@contextmanager
def texts_with_numbers(pipeline: Any) -> Iterator[None]:
    """Within this context a pipeline's call has its token numbers and masks on the CPU, where it
    may look at them; its networks compute shapes as before."""
    parts = {n: part for n, part in pipeline.components.items() if isinstance(part, nn.Module)}
    vars(pipeline).update({name: _WithNumbers(part) for name, part in parts.items()})
    try:
        yield
    finally:
        vars(pipeline).update(parts)


class _WithNumbers:
    """Stands in the place of a network without weights: takes tensors from the CPU, and gives zeros
    there that take no memory."""

    device = torch.device("cpu")

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(_without_numbers, (args, kwargs))
        with _WholeMasks():  # type: ignore[no-untyped-call]
            return tree_map(_zeros, self.network(*args, **kwargs))

    def encode(self, pictures: Tensor) -> Any:
        """Of an autoencoder: the law of the latents, of zeros."""
        coded = self.network.encode(pictures.to(META))  # type: ignore[operator]
        law = coded.latent_dist
        return type(coded)(latent_dist=type(law)(_zeros(law.parameters)))


def _without_numbers(value: Any) -> Any:
    return value.to(META) if isinstance(value, Tensor) else value


def _zeros(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.zeros((), dtype=value.dtype).expand(value.shape)


class _WholeMasks(TorchDispatchMode):
    """Where a text encoder asks whether a mask leaves nothing out, to do without it, it does not:
    that changes no shape."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype is torch.bool:
            return True
        return func(*args, **(kwargs or {}))


def weights_of(policy: Policy) -> dict[str, int]:
    """Bytes of each part of a model: of a pipeline by the names of its parts, else `network`."""
    backbone = inner(policy.backbone)
    if not isinstance(backbone, Pipelined):
        return {"network": _bytes(backbone.network)}
    parts = {**backbone.pipeline.components, SLOPES: backbone.slope_decoder}
    return {name: _bytes(part) for name, part in parts.items() if isinstance(part, nn.Module)}


def _bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    storages = {id(t): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
