import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAGES = ("autoencoder", "decoder", "text", "unet", "more-unet", "last-unet")
FEW = ("--pictures", "16", *(word for stage in STAGES for word in (f"--{stage}-steps", "3")))


def hashes(model: Path) -> dict[str, str]:
    files = [path for path in model.rglob("*") if path.is_file()]
    return {str(path.relative_to(model)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seeds_give_the_same_weights_also_by_stages(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.shapes.train", *FEW, "--output"]
    trainings = [[*command, str(tmp_path / name)] for name in ("one", "two", "three")]
    for training in trainings[1:]:
        training += ["--checkpoints", str(tmp_path / "kept")]
    for training in trainings:
        ended = subprocess.run(training, cwd=ROOT, check=True, capture_output=True, text=True)
        assert "trained in" in ended.stdout
    one, two, three = (hashes(tmp_path / name) for name in ("one", "two", "three"))
    assert sum(name.endswith(".safetensors") for name in one) == 3
    assert one == two == three
