"""Weights that stay quantised give the same bits as weights that are converted at load, and take less memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.fp8 import scaled, scaled_by_row
from tests.support.loras import PEFT, Lora
from tests.support.reference import make_small_model
from tests.support.single_files import make_single_file
from weave.config.child_configs import WorkerLora, WorkerModel
from weave.config.schema import Form
from weave.gpu_worker import kept
from weave.gpu_worker.kept import Kept, KeptLinear
from weave.gpu_worker.loading import load_pipeline
from weave.gpu_worker.loras import merged
from weave.gpu_worker.placement import Placement
from weave.models.assets import Source
from weave.models.families import FAMILIES
from weave.protocol.client_messages import ModelOffer
from weave.protocol.loras import LoraOffer, RequestedLora

# By family, the components whose weights may stay quantised.
LARGE = {"flux": ("transformer", "text_encoder_2"), "z-image": ("transformer", "text_encoder"), "sd1": ("unet",)}
# In flux some of the authors' layers are split into several in diffusers.
LAYER = "transformer_blocks.0.attn.to_k"
STORED = {"scaled": scaled, "by_row": scaled_by_row}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Path, Path]]:
    """By family and kind of scales: a file, and its layout."""
    top, found = tmp_path_factory.mktemp("models"), {}
    for family in LARGE:
        layout = make_small_model(family, top / family)
        tensors = load_file(make_single_file(family, layout, top / f"{family}.safetensors"))
        for kind, store in STORED.items():
            file = top / f"{family}-{kind}.safetensors"
            save_file(store(tensors), file)
            found[family, kind] = (file, layout)
    return found


def loaded(files: tuple[Path, Path], form: Form, dtype: torch.dtype = torch.float32) -> Any:
    file, layout = files
    family = file.stem.rpartition("-")[0]
    return load_pipeline(family, Source(file, layout), torch.device("cpu"), dtype, form=form)


def weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """By name, of all layers and tables; quantised weights are converted."""
    for name, module in model.named_modules():
        if isinstance(module, KeptLinear):
            yield f"{name}.weight", module.weight
            yield from [] if module.bias is None else [(f"{name}.bias", module.bias)]
        else:
            yield from module.named_parameters(name, recurse=False)


def in_few_bits(model: torch.nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, KeptLinear)]


def size(model: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("family", LARGE)
def test_each_bit_is_as_if_it_had_been_loaded(files: Any, family: str, kind: str, dtype: torch.dtype) -> None:
    small, full = (loaded(files[family, kind], form, dtype) for form in ("kept", "full"))
    for part, component in FAMILIES[family].components.items():
        if part.startswith("tokenizer"):
            continue
        one, other = (dict(weights(getattr(pipeline, part))) for pipeline in (small, full))
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name
        assert bool(in_few_bits(getattr(small, part))) == (part in LARGE[family]), component
        assert not in_few_bits(getattr(full, part))


@pytest.mark.parametrize("family", LARGE)
def test_they_take_a_byte_each_and_a_scale_a_row(files: Any, family: str) -> None:
    small, full = (loaded(files[family, "scaled"], form) for form in ("kept", "full"))
    for part in LARGE[family]:
        model = getattr(small, part)
        modules = [model.get_submodule(name) for name in in_few_bits(model)]
        saved = sum(3 * layer.in_features * layer.out_features - 4 * layer.out_features for layer in modules)
        assert size(model) == size(getattr(full, part)) - saved


def test_all_linear_layers_of_the_denoiser_are_kept(files: Any) -> None:
    transformer = loaded(files["flux", "scaled"], "kept").transformer
    assert not [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]


def test_rows_are_computed_in_pieces_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = Kept(torch.randn(7, 16).to(torch.float8_e4m3fn), torch.rand(7, 1))
    whole = matrix.full(torch.float32)
    assert torch.equal(whole, matrix.data.float() * matrix.scale)
    for rows in (1, 3):
        monkeypatch.setattr(kept, "_AT_ONCE", rows * 16)
        assert torch.equal(matrix.full(torch.float32), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_lora_gives_the_sums_of_merged_weights_and_goes_again(files: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    small, full = (loaded(files["flux", "scaled"], form, dtype) for form in ("kept", "full"))
    layers = {f"transformer.{LAYER}": f"transformer {LAYER}"}
    path = Lora(full, layers, PEFT).write(tmp_path / "lora.safetensors")
    offer = LoraOffer(id="one", family="flux", title="", max_weight=2.0)
    known = FAMILIES["flux"]
    offered = ModelOffer(
        id="m", family="flux", title="", bounds=known.bounds, defaults=known.defaults, schedulers=known.schedulers
    )
    worker_lora = WorkerLora(offer=offer, path=str(path), sha256=None)
    model = WorkerModel(offer=offered, path="", layout=None, parts={}, sha256={}, loras=(worker_lora,))
    before = small.transformer.get_submodule(LAYER).weight.clone()
    found = []
    for pipeline in (small, full):
        with merged(pipeline, model, (RequestedLora("one", 1.5),), Placement(torch.device("cpu"))):
            found.append(pipeline.transformer.get_submodule(LAYER).weight.clone())
    assert torch.equal(*found) and not torch.equal(found[0], before)
    assert torch.equal(small.transformer.get_submodule(LAYER).weight, before)


def test_multiplying_in_fp8_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch._scaled_mm on the CPU: which GPUs take it is another question."""
    torch.manual_seed(0)
    weight = torch.randn(32, 48)
    scale = weight.abs().amax(dim=1, keepdim=True) / 448
    matrix = Kept((weight / scale).to(torch.float8_e4m3fn), scale)
    values, bias = torch.randn(2, 5, 48, dtype=torch.bfloat16), torch.randn(32, dtype=torch.bfloat16)
    layer = KeptLinear(matrix, torch.nn.Parameter(bias), torch.bfloat16, in_fp8=True)
    exact = layer(values)
    monkeypatch.setattr(kept, "_multiplies_fp8", lambda *_: True)
    found = layer(values)
    assert found.shape == exact.shape and found.dtype == exact.dtype and not torch.equal(found, exact)
    assert (found - exact).float().pow(2).mean() < 0.003 * exact.float().pow(2).mean()
