"""The devices of a config, by name. At most one worker runs on each at any time."""

from weave.config.schema import ConfigError, DeviceConfig


def check_devices(config: DeviceConfig) -> None:
    """Raises ConfigError."""
    if config.device is not None and config.devices is not None:
        raise ConfigError(
            f"device.device is {config.device!r} and device.devices is {list(config.devices)}: set only one of them"
        )
    for name in config.devices or ():
        if name != "cpu" and (config.devices or ()).count(name) > 1:
            raise ConfigError(f"device.devices has {name} twice: a GPU has one worker; only cpu may be repeated")


def device_names(config: DeviceConfig) -> tuple[str, ...]:
    """A unique name for each device: several workers on the CPU are cpu:0, cpu:1, ..."""
    if config.devices is None:
        return (config.device or "auto",)
    cpus = config.devices.count("cpu")
    numbers = iter(range(cpus))
    return tuple(f"cpu:{next(numbers)}" if name == "cpu" and cpus > 1 else name for name in config.devices)


def is_cpu(name: str) -> bool:
    """Whether a name of device_names() stands for the CPU. `auto` may be either."""
    return name.partition(":")[0] == "cpu"
