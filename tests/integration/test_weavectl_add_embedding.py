"""weavectl add with an embedding: what it says, what it writes, and that the daemon then offers it."""

import json
import signal
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from tests.integration.test_weavectl import weavectl
from tests.support import tiny_models, tiny_parts
from tests.support.daemon import Daemon, wait_for
from tests.support.embeddings import made
from weave.models.detect import detect
from weave.models.files import ModelFilesRefused


def model_of_published_width(folder: Path) -> Path:
    """With vectors of 768 numbers, as Stable Diffusion 1.5."""
    model = tiny_models.make_small_sd(folder)
    config = tiny_parts.clip_config()
    config.hidden_size = 768
    transformers.CLIPTextModel(config).save_pretrained(model / "text_encoder")
    tiny_models.small_unet(768).save_pretrained(model / "unet")
    return model


def test_an_embedding_that_was_added_is_served(daemon: Daemon, tmp_path: Path) -> None:
    file = made("emb_params", shape=(3, 768)).write(tmp_path / "EasyNegative.safetensors")
    ended = weavectl(daemon, "add", str(file))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "family      sd1\nvectors     3, of 768 numbers\n" in ended.stdout
    assert ended.stdout.endswith('Then: weavectl generate "... easynegative ..." --embedding easynegative\n')
    drop_in = daemon.folder / "config/weave/conf.d/easynegative.toml"
    table = f'[embeddings.easynegative]\npath = "{file}"\nfamily = "sd1"\ntitle = "EasyNegative"\n'
    assert drop_in.read_text() == table
    again = weavectl(daemon, "add", str(file))
    assert again.returncode == 4 and "is in the config already, as easynegative" in again.stdout
    assert weavectl(daemon, "add", str(model_of_published_width(tmp_path / "small"))).returncode == 0
    daemon.process.send_signal(signal.SIGHUP)
    wait_for(lambda: daemon.events("reloaded") != [])
    assert "  easynegative          sd1         EasyNegative (embedding)" in weavectl(daemon, "models").stdout
    options = ("--model=small", "--steps=1", "--width=64", "--height=64", "--embedding=easynegative")
    generated = weavectl(daemon, "generate", "a circle, EasyNegative", *options, folder=tmp_path)
    assert generated.returncode == 0, generated.stderr


def test_scripts_get_family_vectors_and_widths(daemon: Daemon, tmp_path: Path) -> None:
    tensors = {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}
    save_file(tensors, tmp_path / "style.safetensors")
    added = json.loads(weavectl(daemon, "--json", "add", "--dry-run", str(tmp_path / "style.safetensors")).stdout)
    assert (added["family"], added["vectors"], added["widths"]) == ("sdxl", 2, [768, 1280])
    assert (added["id"], added["written"], added["toml"].splitlines()[0]) == ("style", False, "[embeddings.style]")


@pytest.mark.parametrize("key, width, family", [("emb_params", 768, "sd1"), ("<cat>", 768, "sd1"), ("*", 1024, "sd2")])
def test_the_width_tells_the_family(tmp_path: Path, key: str, width: int, family: str) -> None:
    file = made(key, shape=(width,)).write(tmp_path / "a.safetensors")
    assert detect(file).families == (family,)
    with pytest.raises(ModelFilesRefused, match="has no UNet or transformer"):
        detect(file, parts={"vae": file})


def test_a_pickle_is_refused_by_name(daemon: Daemon, tmp_path: Path) -> None:
    torch.save({"string_to_param": {"*": torch.ones(1, 768)}}, tmp_path / "old.pt")
    ended = weavectl(daemon, "add", str(tmp_path / "old.pt"))
    assert ended.returncode == 4
    assert "old.pt: not a .safetensors or .gguf file; other formats can run code and are never read" in ended.stdout
