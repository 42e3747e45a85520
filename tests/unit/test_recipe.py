"""How an image was generated, from the texts of a PNG: this daemon's, the web UI's, and hostile ones."""

import io
import json
import zlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import structs
from PIL import Image, PngImagePlugin

import weave
from weave.models.families import FAMILIES
from weave.models.schedulers import SCHEDULERS
from weave.protocol.defaults import with_defaults
from weave.protocol.infotext import infotext, sampler_of
from weave.protocol.inputs import InputImage
from weave.protocol.loras import RequestedLora
from weave.protocol.parameters import Enlarge, Parameters, RequestedParameters
from weave.weavectl.infotext import BadInfotext, Infotext, read_infotext
from weave.weavectl.png_text import UnreadablePng, texts_of
from weave.weavectl.recipe import BadRecipe, Recipe, recipe_of

FAMILY = FAMILIES["sd1"]
SIZE = InputImage(width=8, height=8)


def parameters(**changed: Any) -> Parameters:
    asked = RequestedParameters(**{"prompt": "x"} | changed)
    return with_defaults(asked, FAMILY.defaults, FAMILY.bounds, seed=1)


def png(texts: dict[str, str]) -> bytes:
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    for name, text in texts.items():
        info.add_itxt(name, text)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def read(data: bytes, settings: dict[str, str] | None = None) -> Recipe:
    return recipe_of(texts_of(io.BytesIO(data)), settings or {})


OWN = {
    "Software": f"weave-compute {weave.__version__}", "prompt": "x", "model": "shapes", "width": "64", "height": "64",
    "steps": "1", "cfg_scale": "1.0", "seed": "1", "scheduler": "ddim", "tokens": "{}",
}  # fmt: skip
HOSTILE: dict[str, tuple[bytes, str]] = {
    "no PNG": (b"GIF89a", "it is not a PNG"),
    "nothing": (b"", "it is not a PNG"),
    "half a PNG": (png(OWN)[:100], "it ends before the image does"),
    "no texts": (png({}), "nothing says how it was generated"),
    "a text is missing": (png({name: text for name, text in OWN.items() if name != "seed"}), "it has no text 'seed'"),
    "a wrong type": (png(OWN | {"steps": "[1]"}), "its text 'steps' is '[1]'; it must be a whole number"),
    "a deep list": (png(OWN | {"loras": "[" * 100_000}), "its text 'loras' is '[[["),
    "a huge number": (png(OWN | {"seed": "9" * 5000}), "its text 'seed' is '999"),
    "NaN": (png(OWN | {"cfg_scale": "NaN"}), "its text 'cfg_scale' is 'NaN'"),
    "escapes in the model": (png(OWN | {"model": "\x1b[31mred"}), r"its text 'model' is '\x1b[31mred'"),
    "digests of other images": (png(OWN | {"inputs": '["' + "0" * 64 + '"]'}), "has 1 digests; it had 0 images"),
    "digests that are none": (png(OWN | {"inputs": '["x"]'}), "must be a JSON list of SHA-256 digests"),
    "a pass of other images": (png(OWN | {"pass": '{"seed":5,"images":2}'}), "contradict each other"),
    "a pass of many": (png(OWN | {"pass": '{"seed":1,"images":1000000}'}), "contradict each other"),
    "a huge text": (png(OWN | {"prompt": "x" * 300_000}), "it has a text of 300"),
    "an unknown sampler": (png({"parameters": "x\nSteps: 1, Sampler: DPM adaptive"}), "its Sampler is 'DPM adaptive'"),
    "no fields": (png({"parameters": "x"}), "it does not end with a line of fields that has Steps"),
    "ComfyUI's graph alone": (png({"prompt": "{}", "workflow": "{}"}), "nothing says how it was generated"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_png_is_a_clear_error(name: str) -> None:
    data, message = HOSTILE[name]
    with pytest.raises((UnreadablePng, BadRecipe)) as refused:
        read(data)
    assert message in str(refused.value) and len(str(refused.value)) < 300


def chunks(*texts: tuple[bytes, bytes], end: bytes = b"IEND") -> bytes:
    made = b"\x89PNG\r\n\x1a\n"
    for kind, data in (*texts, (end, b"")):
        made += len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    return made


BOMB = zlib.compress(bytes(2**24))
HALF = zlib.compress(b"text" * 100)[:-8]
BAD_CHUNKS: dict[str, tuple[bytes, str]] = {
    "a bomb in zTXt": (chunks((b"zTXt", b"a\0\0" + BOMB)), "its text 'a' has more than 262144 bytes"),
    "a bomb in iTXt": (chunks((b"iTXt", b"a\0\1\0\0\0" + BOMB)), "its text 'a' has more than 262144 bytes"),
    "many large texts": (
        chunks(*((b"tEXt", b"%d\0" % number + b"x" * 200_000) for number in range(6))), "its texts have more than"
    ),
    "many chunks": (chunks(*((b"aaaa", b""),) * 100_001), "it has more than 100000 chunks"),
    "a length of 4 GiB": (b"\x89PNG\r\n\x1a\n\xff\xff\xff\xfftEXt", "it has a text of 4294967295 bytes"),
    "half a stream": (chunks((b"zTXt", b"a\0\0" + HALF)), "cannot be decompressed"),
    "no stream": (chunks((b"zTXt", b"a\0\0junk")), "its text 'a' cannot be decompressed"),
    "another compression": (chunks((b"zTXt", b"a\0\1" + HALF)), "has an unknown compression"),
    "no name": (chunks((b"tEXt", b"\0text")), "it has a text with the name ''"),
    "an endless name": (chunks((b"tEXt", b"a" * 500)), "it has a text with the name 'aaa"),
    "escapes in a name": (chunks((b"tEXt", b"\x1b[31m\0text")), "it has a text with the name"),
    "not UTF-8": (chunks((b"iTXt", b"a\0\0\0\0\0\xff")), "its text 'a' is not UTF-8"),
    "half a header": (chunks((b"iTXt", b"a\0\0\0\0")), "its text 'a' is incomplete"),
    "one name twice": (chunks((b"tEXt", b"a\0b"), (b"tEXt", b"a\0c")), "it has the text 'a' twice"),
    "a wrong checksum": (chunks((b"tEXt", b"a\0b")).replace(b"a\0b", b"a\0c"), "a text is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_bad_chunks_are_a_clear_error(name: str) -> None:
    data, message = BAD_CHUNKS[name]
    with pytest.raises(UnreadablePng, match=message):
        texts_of(io.BytesIO(data))


def test_each_kind_of_text_is_read() -> None:
    compressed = zlib.compress("é".encode())
    data = chunks(
        (b"tEXt", b"a\0\xe9"), (b"zTXt", b"b\0\0" + zlib.compress(b"\xe9")),
        (b"iTXt", b"c\0\0\0en\0x\0" + "é".encode()),
        (b"iTXt", b"d\0\1\0\0\0" + compressed), (b"IDAT", b"\0" * 9), (b"tEXt", b"e\0"),
    )  # fmt: skip
    assert texts_of(io.BytesIO(data)) == {"a": "é", "b": "é", "c": "é", "d": "é", "e": ""}


def test_a_setting_replaces_even_what_cannot_be_read() -> None:
    text = "x <lora:Some Name:1>\nSteps: 1, Sampler: DPM adaptive"
    recipe = recipe_of({"parameters": text}, {"scheduler": "ddim", "loras": "[]"})
    assert recipe.values["scheduler"] == "ddim" and recipe.values["loras"] == () and recipe.schedulers == ()
    assert recipe.values["prompt"] == "x"


def test_an_image_of_a_pass_is_repeated_alone_with_another_seed() -> None:
    texts = OWN | {"batch": "4", "seed": "2", "pass": '{"seed":0,"images":3}'}
    assert recipe_of(texts, {})[-2:] == (3, 2) and recipe_of(texts, {})[0]["seed"] == 0
    for settings in ({"seed": "9"}, {"batch": "1"}):
        assert recipe_of(texts, settings)[-2:] == (1, 0)


def test_inputs_and_unknown_texts_are_told_apart() -> None:
    control = [{"id": "edges", "image": structs.asdict(SIZE), "scale": 0.5}]
    digests = [str(number) * 64 for number in range(3)]
    texts = OWN | {"image": json.dumps(structs.asdict(SIZE)), "control": json.dumps(control), "Comment": "x"}
    texts |= {"references": json.dumps([structs.asdict(SIZE)]), "inputs": json.dumps(digests)}
    recipe = recipe_of(texts, {})
    assert [(one.field, one.digest) for one in recipe.inputs] == [
        ("image", digests[0]), ("control", digests[1]), ("references", digests[2])
    ]  # fmt: skip
    assert recipe.control[0].scale == 0.5 and recipe.ignored == ("Comment",)


# The web UI's text keeps everything in a prompt except what looks like its own syntax.
PROMPTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200).filter(
    lambda text: "<lora:" not in text and not any(line.startswith("Negative prompt:") for line in text.split("\n"))
)


@given(PROMPTS, PROMPTS)
@example('a "b", c: <d>\nSteps: 5, Sampler: Euler', "\n é\u2028\0 ")
@example("", "")
def test_prompts_survive_the_text_for_other_tools(prompt: str, negative_prompt: str) -> None:
    asked = parameters(prompt=prompt, negative_prompt=negative_prompt)
    found = read_infotext(infotext(asked, model="m", seed=5, version="1"))
    assert (found.values["prompt"], found.values["negative_prompt"]) == (prompt, negative_prompt)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_has_a_name_that_is_read_back(scheduler: str) -> None:
    asked = structs.replace(parameters(), scheduler=scheduler)
    assert scheduler in read_infotext(infotext(asked, model="m", seed=5, version="1")).schedulers
    assert sampler_of(scheduler)[0] != scheduler


def test_numbers_loras_and_a_second_pass_survive() -> None:
    loras = (RequestedLora("detail", 0.8), RequestedLora("ink-2", -1.0))
    asked = parameters(loras=loras, enlarge=Enlarge(scale=1.5, strength=0.3), cfg_scale=7.25, width=64, height=128)
    found = read_infotext(infotext(asked, model="m", seed=2**64 - 1, version="1"))
    expected = {
        "seed": 2**64 - 1,
        "cfg_scale": 7.25,
        "width": 64,
        "height": 128,
        "loras": loras,
        "enlarge": asked.enlarge,
    }
    assert {name: found.values[name] for name in expected} == expected and "strength" not in found.values
    repainted = parameters(image=SIZE, mask=SIZE, strength=0.4, mask_padding=16)
    found = read_infotext(infotext(repainted, model="m", seed=5, version="1"))
    assert (found.values["strength"], found.values["mask_padding"], found.ignored) == (0.4, 16, ("Model",))


# The last line of a text; the scheduler that it means; and the fields that are not used.
REAL: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "1.10": (
        'Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x768, Model hash: ab, '
        'Model: m, VAE: v.pt, Lora hashes: "d: 1, e: 2", Hashes: {"model": "x", "l": "y"}, Clip skip: 2, Version: v1.1',
        "dpmpp_2m_karras",
        ("Model", "VAE", "Clip skip"),
    ),
    "before schedule types": ("Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7", "dpmpp_2m_karras", ()),
    "automatic": ("Steps: 20, Sampler: DPM++ 2M, Schedule type: Automatic", "dpmpp_2m_karras", ()),
    "automatic elsewhere": ("Steps: 20, Sampler: Euler a, Schedule type: Automatic", "euler_a", ()),
    "DDIM": ("Steps: 20, Sampler: DDIM", "ddim", ()),
    "UniPC": ("Steps: 20, Sampler: UniPC", "unipc", ()),
    "LCM": ("Steps: 4, Sampler: LCM", "lcm", ()),
    "PLMS": ("Steps: 20, Sampler: PLMS", "pndm", ()),
    "ComfyUI": ("Steps: 20, Sampler: dpmpp_2m_karras, CFG scale: 7.0, Seed: 1", "dpmpp_2m_karras", ()),
    "ComfyUI's ancestral": ("Steps: 20, Sampler: euler_ancestral, Schedule type: normal", "euler_a", ()),
    "lines of an extension": ("Steps: 20, Sampler: Euler\nTemplate: {a|b}\nNegative Template: c", "euler", ()),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_texts_of_other_programs_are_read(name: str) -> None:
    last, scheduler, ignored = REAL[name]
    found = read_infotext(f"a (cat:1.2)\nNegative prompt: bad\nworse\n{last}")
    assert (found.values["prompt"], found.values["negative_prompt"]) == ("a (cat:1.2)", "bad\nworse")
    assert found.schedulers[0] == scheduler and found.ignored == ignored


BAD_TEXTS = {
    "x\nSteps: a": "its Steps is 'a'; it must be a whole number",
    "x\nSteps: 1, CFG scale: nan": "its CFG scale is 'nan'; it must be a number",
    "x\nSteps: 1, Size: 5": "its Size is ''",
    "x\nSteps: 1, Sampler: Restart": "its Sampler is 'Restart', which the daemon does not have",
    "x\nSteps: 1, Sampler: Euler, Schedule type: Beta": "its Schedule type is 'Beta', which the daemon does not have",
    "x <lora:A B:1>\nSteps: 1": "its LoRA 'A B' has a name that no LoRA",
    "x <lora:a:high>\nSteps: 1": "the weight of the LoRA a is 'high'",
    "x" * 70_000: "it has 70000 bytes, more than 65536",
}


@pytest.mark.parametrize("text", BAD_TEXTS, ids=lambda text: text[:30])
def test_a_bad_text_is_refused_with_its_field(text: str) -> None:
    with pytest.raises(BadInfotext, match=BAD_TEXTS[text]):
        read_infotext(text)


@pytest.mark.parametrize("piece", ["<lora:", ",", "[", "a:", " ", "\n", '"', "Steps: 1,", "<lora:a:1>"])
def test_no_text_takes_long(piece: str) -> None:
    """Each takes milliseconds; with a quadratic reader the test would time out."""
    for text in (piece * (60_000 // len(piece)), f"{piece * (60_000 // len(piece))}\nSteps: 1"):
        try:
            assert isinstance(read_infotext(text), Infotext)
        except BadInfotext as error:
            assert str(error)
