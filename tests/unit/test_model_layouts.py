"""Which folders are valid models of a family, by their JSON files alone: published ones are, altered ones are not."""

import ast
import dataclasses
import inspect
import json
import types
import typing
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import transformers

from tests.support.published import PUBLISHED, write
from weave.gpu_worker import pipelines
from weave.gpu_worker.classes import component_class, pipeline_class
from weave.models import families
from weave.models.components import ModelClass
from weave.models.configs import Rule
from weave.models.families import FAMILIES
from weave.models.faults import refuse_first
from weave.models.files import ModelFilesRefused
from weave.models.layouts import Checked, layout_checks
from weave.models.schedulers import RELATED, SCHEDULER_RULES, SCHEDULERS

SD1, SDXL, SD3, FLUX = (PUBLISHED[name][1] for name in ("Stable Diffusion 1.5", "SDXL", "SD 3.5", "FLUX.1-dev"))
MODEL_CLASSES = {
    component.class_name: component
    for family in FAMILIES.values()
    for component in family.components.values()
    if isinstance(component, ModelClass)
}


def check_layout(name: str, model: Path) -> Checked:
    """As the worker does: it refuses at the first fault."""
    return refuse_first(layout_checks(name, model))


def parameters(class_name: str) -> dict[str, Any]:
    """The arguments of an installed class, or of its config, with their defaults."""
    if hasattr(diffusers, class_name):
        signature = inspect.signature(getattr(diffusers, class_name).__init__).parameters.values()
        return {argument.name: argument.default for argument in signature if argument.name != "self"}
    config_class = getattr(transformers, class_name).config_class
    return {field.name: field.default for field in dataclasses.fields(config_class)}


def annotations(class_name: str) -> dict[str, Any]:
    """The types of the same arguments; where a class declares none, those of its defaults."""
    if hasattr(diffusers, class_name):
        signature = inspect.signature(getattr(diffusers, class_name).__init__).parameters.values()
        return {
            argument.name: type_of(argument.default) if argument.annotation is argument.empty else argument.annotation
            for argument in signature
            if argument.name != "self"
        }
    return {field.name: field.type for field in dataclasses.fields(getattr(transformers, class_name).config_class)}


def type_of(default: Any) -> Any:
    """None stands for a number that may be missing."""
    return int | None if default is None else list[Any] if isinstance(default, list | tuple) else type(default)


def rule_of(kind: str, annotation: Any) -> Rule:
    """The rule that a type amounts to, for a key of this kind."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    options = set(typing.get_args(annotation)) if is_union else {annotation}
    lists = {option for option in options if option is np.ndarray or typing.get_origin(option) in (list, tuple)}
    return Rule(kind, single=bool(options - lists - {type(None)}), listed=bool(lists), null=type(None) in options)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_installed_libraries_can_run_each_family(name: str) -> None:
    family = FAMILIES[name]
    for component in family.components.values():
        assert inspect.isclass(component_class(component))
    taken = {"scheduler", *family.components, *family.settings.keys, *family.fixed}
    for pipeline in family.all_pipelines:
        assert set(family.components) <= parameters(pipeline).keys()
    required = {key for key, default in parameters(family.pipeline).items() if default is inspect.Parameter.empty}
    assert required <= taken <= parameters(family.pipeline).keys()
    assert family.of_some_models <= family.pipelines.keys()
    called = inspect.signature(pipeline_class(family).__call__).parameters
    assert pipelines.adapter_of(name).call_names() <= called.keys()
    if name.startswith("qwen-image-edit"):  # its classes cut nothing, and refuse only a larger number
        assert family.max_sequence_length == 1024
    elif family.max_sequence_length is not None:
        assert called["max_sequence_length"].default == family.max_sequence_length
    else:
        assert "max_sequence_length" not in called
    assert family.optional < set(family.components)
    assert family.defaults.scheduler in family.schedulers


def test_every_module_of_families_and_adapters_is_in_use() -> None:
    for package, used in ((families, set(families._MODULES)), (pipelines, {one.adapter for one in FAMILIES.values()})):
        (folder,) = package.__path__
        assert {path.stem for path in Path(folder).glob("*.py")} == {"__init__", *used}


@pytest.mark.parametrize("class_name", MODEL_CLASSES)
def test_every_key_of_a_class_is_known_and_no_other_passed_on(class_name: str) -> None:
    known = MODEL_CLASSES[class_name].config
    taken = parameters(class_name)
    assert taken.keys() <= known.keys.keys() | known.objects.keys() | known.ignored
    # T5 computes the first two from feed_forward_proj, unless a config says otherwise.
    assert known.keys.keys() - taken.keys() <= {"dense_act_fn", "is_gated_act", "bos_token_id", "rope_theta"}


INNER = {
    (class_name, key): inner
    for class_name, component in MODEL_CLASSES.items()
    for key, inner in component.config.objects.items()
    if key in ("text_config", "vision_config")
}


@pytest.mark.parametrize("class_name, part", INNER)
def test_every_key_of_an_inner_config_is_known(class_name: str, part: str) -> None:
    rules = INNER[class_name, part]
    config_class = getattr(transformers, class_name).config_class.sub_configs[part]
    theirs = {field.name: field.type for field in dataclasses.fields(config_class)}
    assert theirs.keys() <= rules.keys.keys() | rules.objects.keys() | rules.ignored
    assert rules.keys.keys() - theirs.keys() <= {"rope_theta"}
    for key in rules.keys.keys() & theirs.keys():
        assert rules.keys[key] == rule_of(rules.keys[key].kind, theirs[key]), key


# Where null or a list is accepted by the type, and the class then fails: when it loads, or at each image.
STRICTER = {
    "CLIPTextModel": {"eos_token_id", "layer_norm_eps", "projection_dim"},
    "CLIPTextModelWithProjection": {"eos_token_id", "layer_norm_eps", "projection_dim"},
    "scheduler": {"base_shift", "max_shift", "use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas"},
}


@pytest.mark.parametrize("class_name", MODEL_CLASSES)
def test_null_and_lists_fit_where_the_class_takes_them(class_name: str) -> None:
    rules, theirs = MODEL_CLASSES[class_name].config.keys, annotations(class_name)
    for key in rules.keys() & theirs.keys():
        if key in STRICTER.get(class_name, ()):
            assert rules[key] == Rule(rules[key].kind) != rule_of(rules[key].kind, theirs[key]), key
        else:
            assert rules[key] == rule_of(rules[key].kind, theirs[key]), key


def test_null_and_lists_fit_where_a_scheduler_takes_them() -> None:
    """A key fits if one of the classes takes it: diffusers makes a scheduler from the config of another."""
    theirs: dict[str, list[Rule]] = {}
    for scheduler in SCHEDULERS.values():
        for key, annotation in annotations(scheduler.class_name).items():
            if key in SCHEDULER_RULES.keys:
                theirs.setdefault(key, []).append(rule_of(SCHEDULER_RULES.keys[key].kind, annotation))
    for key, found in theirs.items():
        rule = SCHEDULER_RULES.keys[key]
        if key in STRICTER["scheduler"]:
            assert rule == Rule(rule.kind) and any(other != rule for other in found), key
        else:
            options = ("single", "listed", "null")
            assert rule == Rule(rule.kind, *(any(getattr(o, option) for o in found) for option in options)), key


@pytest.mark.parametrize("class_name", MODEL_CLASSES)
def test_missing_config_keys_are_checked_with_the_class_defaults(class_name: str) -> None:
    theirs = parameters(class_name)
    for key, value in MODEL_CLASSES[class_name].defaults.items():
        default = theirs[key]
        assert (list(default) if isinstance(default, tuple) else default) == value, key


@pytest.mark.parametrize("class_name", MODEL_CLASSES)
def test_modules_kept_in_float32_are_those_of_the_class(class_name: str) -> None:
    component = MODEL_CLASSES[class_name]
    assert set(component.kept_in_float32) == set(component_class(component)._keep_in_fp32_modules or ())


OFFERED = sorted({scheduler.class_name for scheduler in SCHEDULERS.values()})


@pytest.mark.parametrize("class_name", [*OFFERED, *RELATED["diffusion"], *RELATED["flow"]])
def test_every_key_of_a_scheduler_is_known(class_name: str) -> None:
    assert set(written_parameters(class_name)) <= SCHEDULER_RULES.keys.keys() | SCHEDULER_RULES.ignored


def written_parameters(class_name: str) -> list[str]:
    """From the source: diffusers replaces two of the classes by placeholders, unless scipy and torchsde are there."""
    (folder,) = diffusers.schedulers.__path__
    for path in Path(folder).glob("scheduling_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name == class_name:
                made = next(item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__")
                return [argument.arg for argument in made.args.args[1:]]
    raise LookupError(class_name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_matches_its_family(tmp_path: Path, name: str) -> None:
    family, files = PUBLISHED[name]
    configs, settings = check_layout(family, write(files, tmp_path))
    assert {"scheduler", "vae"} < configs.keys()
    assert settings == {key: files["model_index.json"][key] for key in FAMILIES[family].settings.keys}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("index", [True, False], ids=["with model_index.json", "without"])
def test_a_published_model_matches_no_other_family(tmp_path: Path, name: str, family: str, index: bool) -> None:
    own, files = PUBLISHED[name]
    # The parts of an Edit model are Qwen-Image's and one more; only the index tells two of the families apart.
    if family == own or (own == "qwen-image-edit" and family.startswith("qwen-image") and not index):
        return
    kept = {path: file for path, file in files.items() if index or path != "model_index.json"}
    with pytest.raises(ModelFilesRefused):
        check_layout(family, write(kept, tmp_path))


def test_a_scheduler_config_may_have_keys_of_other_classes(tmp_path: Path) -> None:
    """diffusers keeps the keys of the scheduler that one was made from."""
    name = "scheduler/scheduler_config.json"
    offered = {"sigma_data": 0.5, "sigma_schedule": "karras", "rho": 7.0}
    others = {
        "noise_sampler_seed": None, "tau_func": None, "predictor_order": 2, "corrector_order": 2, "tensor_format": "pt",
        "timestep_values": None,
    }  # fmt: skip
    sound, _ = check_layout("sd1", write(SD1, tmp_path / "sound"))
    configs, _ = check_layout("sd1", write(SD1 | {name: SD1[name] | offered | others}, tmp_path / "left"))
    assert configs["scheduler"] == sound["scheduler"] | offered


PLAYGROUND = {
    "_class_name": "EDMDPMSolverMultistepScheduler", "_diffusers_version": "0.27.0.dev0",
    "algorithm_type": "dpmsolver++", "dynamic_thresholding_ratio": 0.995, "euler_at_final": False,
    "final_sigmas_type": "zero", "lower_order_final": True, "num_train_timesteps": 1000, "prediction_type": "epsilon",
    "rho": 7.0, "sample_max_value": 1.0, "sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002, "solver_order": 2,
    "solver_type": "midpoint", "thresholding": False,
}  # fmt: skip


def test_edms_noise_schedule_is_sdxls_only(tmp_path: Path) -> None:
    name = "scheduler/scheduler_config.json"
    configs, _ = check_layout("sdxl", write(SDXL | {name: PLAYGROUND}, tmp_path / "sdxl"))
    assert configs["scheduler"] == {k: v for k, v in PLAYGROUND.items() if k in ("_class_name", *SCHEDULER_RULES.keys)}
    assert FAMILIES["sdxl"].default_scheduler(configs["scheduler"]) == "edm_dpmpp_2m"
    assert FAMILIES["sdxl"].default_scheduler(SDXL[name]) == "euler"
    with pytest.raises(ModelFilesRefused, match="is 'EDMDPMSolverMultistepScheduler', expected one of DDIMScheduler, "):
        check_layout("sd1", write(SD1 | {name: PLAYGROUND}, tmp_path / "sd1"))


@pytest.mark.parametrize(
    "family, class_name", [("sd1", name) for name in RELATED["diffusion"]] + [("flux", RELATED["flow"][0])]
)
def test_a_related_schedulers_numbers_go_to_the_default_class(tmp_path: Path, family: str, class_name: str) -> None:
    name = "scheduler/scheduler_config.json"
    files = SD1 if family == "sd1" else FLUX
    configs, _ = check_layout(family, write(files | {name: files[name] | {"_class_name": class_name}}, tmp_path))
    default = SCHEDULERS[FAMILIES[family].defaults.scheduler].class_name
    assert configs["scheduler"] == files[name] | {"_class_name": default}


UNET, VAE = "unet/config.json", "vae/config.json"


def test_an_incomplete_set_of_files_is_refused(tmp_path: Path) -> None:
    half = {name: file for name, file in SD3.items() if not name.startswith("tokenizer_3")}
    with pytest.raises(ModelFilesRefused, match="tokenizer_3: this family needs the folder"):
        check_layout("sd3", write(half, tmp_path / "half"))
    with pytest.raises(ModelFilesRefused, match=r"tokenizer: lacks tokenizer.json, or vocab.json and merges.txt"):
        check_layout("sd1", write({k: v for k, v in SD1.items() if "merges" not in k}, tmp_path / "speechless"))
    slow = write({k: v for k, v in FLUX.items() if k != "tokenizer_2/tokenizer.json"}, tmp_path / "slow")
    with pytest.raises(
        ModelFilesRefused, match=r"^tokenizer_2: lacks tokenizer.json; spiece.model .*: get tokenizer.json"
    ):
        check_layout("flux", slow)


VALUES: dict[str, tuple[str, str, str]] = {
    "NaN": (VAE, '"scaling_factor": NaN', "scaling_factor is nan, expected a number from -1e"),
    "infinity": (VAE, '"scaling_factor": Infinity', "scaling_factor is inf"),
    "overflow": (VAE, '"scaling_factor": 1e999', "scaling_factor is inf"),
    "negative": (UNET, '"in_channels": -4', "in_channels is -4, expected a whole number from 1 to 1048576"),
    "zero": (UNET, '"block_out_channels": [0]', r"block_out_channels is \[0\]"),
    "huge": (UNET, '"block_out_channels": [1000000000]', r"is \[1000000000\], expected a whole number"),
    "many layers": (UNET, '"layers_per_block": 100000', "layers_per_block is 100000, expected .* from 0 to 1024"),
    "a digit too many": (UNET, '"in_channels": ' + "9" * 5000, "unet/config.json: not valid JSON"),
    "negative epsilon": (UNET, '"norm_eps": -1', "norm_eps is -1, expected a number from 0 to 1"),
    "text for a number": (UNET, '"in_channels": "4"', "in_channels is '4'"),
    "a number for a flag": (UNET, '"use_linear_projection": 1', "use_linear_projection is 1, expected true or false"),
    "a path for a name": (UNET, '"act_fn": "../../x"', "act_fn is '../../x', expected a plain name"),
    "an object": (UNET, '"act_fn": {"a": {}}', "act_fn is {'a': {}}"),
    "deep": (UNET, '"act_fn": ' + "[" * 90 + "]" * 90, "act_fn is"),
    "deeper": (UNET, '"act_fn": ' + "[" * 200_000 + "]" * 200_000, "not valid JSON"),
    "twice": (UNET, '"act_fn": "silu", "act_fn": "silu"', "duplicate key"),
    "an escape": (UNET, '"act_fn": "\\u001b[2J"', r"act_fn is '\\x1b\[2J'"),
    "negative betas": ("scheduler/scheduler_config.json", '"beta_end": -1', "beta_end is -1"),
    "many steps": ("scheduler/scheduler_config.json", '"num_train_timesteps": 10000000', "is 10000000, expected"),
    "no length": ("tokenizer/tokenizer_config.json", '"model_max_length": NaN', "model_max_length is nan"),
}


@pytest.mark.parametrize("name", VALUES)
def test_an_impossible_value_is_refused_by_field_and_bound(tmp_path: Path, name: str) -> None:
    file, text, told = VALUES[name]
    write(SD1, tmp_path)
    key = text.split('"')[1]
    rest = json.dumps({k: v for k, v in SD1[file].items() if k != key})
    (tmp_path / file).write_text(f"{{{text}, {rest[1:]}")
    with pytest.raises(ModelFilesRefused, match=told):
        check_layout("sd1", tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"7", b'"text"', b"\xff\xfe{}", b"{}{}", b"\x00" * 100])
@pytest.mark.parametrize("file", [name for name in SDXL if name.endswith(".json") and "vocab" not in name])
def test_a_file_without_a_json_object_is_refused_by_name(tmp_path: Path, file: str, data: bytes) -> None:
    write(SDXL, tmp_path)
    (tmp_path / file).write_bytes(data)
    with pytest.raises(ModelFilesRefused, match=f"^{file}: "):
        check_layout("sdxl", tmp_path)


def test_a_missing_config_or_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    write(SD1, tmp_path)
    (tmp_path / UNET).unlink()
    with pytest.raises(ModelFilesRefused, match=r"^unet/config.json: No such file"):
        check_layout("sd1", tmp_path)
    (tmp_path / UNET).mkdir()
    with pytest.raises(ModelFilesRefused, match=r"^unet/config.json: not a regular file"):
        check_layout("sd1", tmp_path)


def test_keys_marked_as_default_get_the_class_default(tmp_path: Path) -> None:
    """diffusers leaves such keys out, and so must the checks."""
    marked = SD1[UNET] | {"in_channels": 9, "_use_default_values": ["in_channels"]}
    configs, _ = check_layout("sd1", write(SD1 | {UNET: marked}, tmp_path))
    assert "in_channels" not in configs["unet"]
    with pytest.raises(ModelFilesRefused, match="in_channels is 9"):
        check_layout("sd1", write(SD1 | {UNET: marked | {"_use_default_values": 5}}, tmp_path))
