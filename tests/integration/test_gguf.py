"""Models whose transformer is a GGUF file: the image equals that of diffusers with the same weights in float32."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from tests.integration.test_weavectl import weavectl
from tests.support.daemon import Daemon, wait_for
from tests.support.generation import generate, images, pixels
from tests.support.gguf_files import Kinds, make_gguf, write
from tests.support.loras import PEFT, Lora
from tests.support.reference import Reference, arguments, make_small_model, served_like_here, write_index
from weave.client import RequestedLora, WeaveError
from weave.gpu_worker.loading import load_pipeline
from weave.models.assets import Source, find_assets
from weave.models.families import FAMILIES
from weave.models.memory import size_of
from weave.models.single_files import DENOISER
from weave.protocol.errors import ErrorCode

# By model: its family, the types in its file, and what the names there begin with.
MODELS = {
    "flux": ("flux", Kinds("Q4_K", "Q5_K", "F16"), ""),
    "flux-32": ("flux", Kinds("Q4_1", "Q5_0", "F32"), DENOISER),
    "z-image": ("z-image", Kinds("Q6_K", "Q8_0", "BF16"), ""),
    "qwen-image": ("qwen-image", Kinds("Q4_0", "Q5_1", "F16"), DENOISER),
}
PROMPT, STEPS, SEED, SCALE = "a red circle", 2, 3, 4.0
# In diffusers one of several layers of what is one in the file.
LAYERS = {"flux": "transformer_blocks.0.attn.to_k", "z-image": "layers.0.attention.to_v"}


class Served(NamedTuple):
    daemon: Daemon
    folders: dict[str, Path]
    loras: dict[str, Lora]


def table(name: str, family: str, file: Path, folder: Path) -> str:
    parts = [part for part in FAMILIES[family].components if part.startswith(("text_encoder", "vae"))]
    lines = [f"[models.{name}]", f'family = "{family}"', f'path = "{file}"', f'layout = "{folder}"']
    return "\n".join([*lines, *(f'parts.{part} = "{folder / part}"' for part in parts), ""])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    top, config, folders, loras = tmp_path_factory.mktemp("models"), "", {}, {}
    for name, (family, kinds, prefix) in MODELS.items():
        folders[name] = folder = make_small_model(family, top / name)
        file = make_gguf(family, folder, top / f"{name}.gguf", kinds, prefix)
        write_index(family, folder)
        config += table(name, family, file, folder)
    config += f'[models.full]\npath = "{folders["flux"]}"\nfamily = "flux"\nweights = "full"\n'
    config += f'parts.transformer = "{top / "flux.gguf"}"\n'
    for memory in ("stages", "streamed"):
        config += table(memory, "flux", top / "flux.gguf", folders["flux"]) + f'memory = "{memory}"\n'
    for name, layer in LAYERS.items():
        plain = Reference(name, folders[name], "float32").pipeline
        loras[name] = Lora(plain, {f"transformer.{layer}": f"transformer {layer}"}, PEFT)
        path = loras[name].write(top / f"{name}-lora.safetensors")
        config += f'[loras.{name}]\npath = "{path}"\nfamily = "{name}"\n'
    config += refused_models(top)
    with served_like_here(config, "float32") as daemon:
        yield Served(daemon, folders, loras)


def refused_models(top: Path) -> str:
    whole, folder = (top / "flux.gguf").read_bytes(), top / "flux"
    write(top / "few.gguf", {"a.weight": (torch.zeros(2, 84, dtype=torch.uint8), "Q2_K")})
    (top / "short.gguf").write_bytes(whole[:-1000])
    (top / "magic.gguf").write_bytes(b"GGML" + whole[4:])
    (top / "pickle.gguf").write_bytes(b"\x80\x04a pickle")
    tables = [table(name, "flux", top / f"{name}.gguf", folder) for name in ("few", "short", "magic", "pickle")]
    tables.append(table("other", "flux", top / "z-image.gguf", folder))
    tables.append(f'[models.vae]\npath = "{folder}"\nfamily = "flux"\nparts.vae = "{top / "flux.gguf"}"\n')
    return "".join(tables)


def drawn(daemon: Daemon, model: str, *loras: RequestedLora) -> np.ndarray:
    wanted = {"width": 64, "height": 64, "steps": STEPS, "seed": SEED, "cfg_scale": SCALE}
    with daemon.client() as client:
        return pixels(images(generate(client, PROMPT, model=model, loras=loras, **wanted))[0])


def expected(family: str, folder: Path, lora: Lora | None = None) -> np.ndarray:
    plain = Reference(family, folder, "float32")
    if lora is not None:
        lora.merge(plain.pipeline, 1.5)
    generator = torch.Generator("cpu").manual_seed(SEED)
    found = plain.generate(
        PROMPT, plain.scheduler("flow_euler"), generator, **arguments(family, None, steps=STEPS, scale=SCALE)
    )
    assert found.std() > 1
    return found


@pytest.mark.parametrize("name", MODELS)
def test_an_image_equals_that_of_diffusers_with_the_same_numbers(served: Served, name: str) -> None:
    assert np.array_equal(drawn(served.daemon, name), expected(MODELS[name][0], served.folders[name]))


def test_computed_up_once_it_gives_the_same_image(served: Served) -> None:
    assert np.array_equal(drawn(served.daemon, "full"), drawn(served.daemon, "flux"))


@pytest.mark.parametrize("memory", ["stages", "streamed"])
def test_weights_in_few_bits_come_and_go_with_the_others(served: Served, memory: str) -> None:
    for loras in ((), (RequestedLora("flux", 1.5),)):
        assert np.array_equal(drawn(served.daemon, memory, *loras), drawn(served.daemon, "flux", *loras))


@pytest.mark.parametrize("name", LAYERS)
def test_a_lora_gives_the_image_of_merged_weights_and_goes(served: Served, name: str) -> None:
    before = drawn(served.daemon, name)
    found = drawn(served.daemon, name, RequestedLora(name, 1.5))
    assert np.array_equal(found, expected(name, served.folders[name], served.loras[name]))
    assert not np.array_equal(found, before)
    assert np.array_equal(drawn(served.daemon, name), before)


def test_the_transformer_takes_the_bytes_that_its_header_gives(served: Served) -> None:
    folder = served.folders["flux"]
    source = Source(folder, None, {"transformer": folder.with_suffix(".gguf")})
    component = FAMILIES["flux"].components["transformer"]
    weights = find_assets("flux", source, "bfloat16").weights["transformer"]
    taken = {}
    for form in ("kept", "full"):
        model = load_pipeline("flux", source, torch.device("cpu"), torch.bfloat16, form=form).transformer
        taken[form] = sum(tensor.nbytes for tensor in model.parameters())
        assert taken[form] == size_of(component, weights, "bfloat16", keeps=form == "kept").whole
    assert taken["kept"] < 0.4 * taken["full"]


def test_add_and_check_config_know_gguf(served: Served) -> None:
    folder = served.folders["qwen-image"]
    parts = [f"--part={part}={folder / part}" for part in ("text_encoder", "vae")]
    file = str(folder.with_suffix(".gguf"))
    added = weavectl(served.daemon, "add", file, "--layout", str(folder), *parts, "--id=new", "--dry-run")
    assert added.returncode == 0 and f'path = "{file}"\n' in added.stdout and 'family = "qwen-image"' in added.stdout
    assert re.search("transformer: QwenImageTransformer2DModel.* in .*Q4_0, .*Q5_1", added.stdout), added.stdout
    checked = weavectl(served.daemon, "check-config")
    for name, message in REFUSED.items():
        assert re.search(f"model {name}: .*{message}", checked.stdout), name


REFUSED = {
    "few": "few.gguf: bad GGUF header: 'a.weight' is of type Q2_K, expected one of F32, F16, BF16, Q4_0",
    "short": "short.gguf: bad GGUF header: .* bytes of data, the header describes .* the download is incomplete",
    "magic": "magic.gguf: bad GGUF header: it begins with b'GGML', expected b'GGUF'",
    "pickle": "pickle.gguf: bad GGUF header: it begins with",
    "other": "z-image.gguf: a model of family z-image, not of flux",
    "vae": "vae: flux.gguf is a GGUF file: only transformer may be one",
}


@pytest.mark.parametrize(("name", "message"), REFUSED.items())
def test_a_file_is_refused_with_the_reason(served: Served, name: str, message: str) -> None:
    before = len(served.daemon.events("job_failed"))
    with served.daemon.client() as client, pytest.raises(WeaveError) as error:
        generate(client, PROMPT, model=name)
    assert error.value.code is ErrorCode.WORKER_FAILED
    log = served.daemon
    wait_for(lambda: [line for line in log.events("job_failed")[before:] if re.search(message, line["detail"])])
