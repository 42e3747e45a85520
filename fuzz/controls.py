"""The target `controls`: what the tensors of a ControlNet's single file say about its config."""

from pathlib import Path

from fuzz.loras import header_of
from fuzz.reading import Reader
from weave.models.control_files import config_of_file, families_of_control, misfits
from weave.models.families import FAMILIES
from weave.models.faults import collect

# The config of a model that a ControlNet fits: these, and the class's own values.
_MODEL = {"vae_blocks": 4, "in_channels": 16, "n_layers": 30}


def controls(data: bytes) -> None:
    """A config has faults, or only values that the class may get; then each difference from the model is a fault."""
    header = header_of(Reader(data)).tensors
    fitting = families_of_control(Path("x"), header)
    for name, family in FAMILIES.items():
        nets = family.control_nets
        if nets is None:
            assert name not in fitting
            continue
        faults, config = collect(config_of_file(nets, "x", header))
        assert all(nets.model.config.keys[key].fits(value) for key, value in config.items()) or faults
        if not faults:
            differ = list(misfits(nets, {**nets.model.defaults, **config}, {**_MODEL, **nets.model.defaults}))
            own = {**nets.model.defaults, **config}
            assert differ or all(own[key] == nets.model.defaults[key] for key in nets.equal)
