# SPDX-License-Identifier: Apache-2.0
"""The quickstart's loss curve with products in bfloat16 beside float32's, and what a curve is worth.

``python benchmarks/loss_curve.py [--seeds 0 1 2 3] [--learning-rate 1e-3] [--json out.jsonl]``

It takes the records that ``bash scripts/quickstart.sh`` leaves.

For each seed four trainings on the same records in the same order, from the same weights:
    plain      float32, MindSpore's operators; the curve the others are compared with
    float32    float32, native kernels
    bfloat16   products in bfloat16, native kernels
    rounded    as float32, but the weights it begins with are rounded to bfloat16, once
The last one is the measure of noise: nothing about it is less exact, it only begins a rounding error away. Its distance
from the plain curve is what any path that leaves at that distance can show.

Relative differences of the mean loss in percent: of all steps, of the last third, of the worst 100 steps that follow
one another; of the worst single step; and of the loss on the validation records with the last weights.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from benchmarks.common import emit  # noqa: E402

CONFIG = REPO / "configs" / "llama2" / "run_llama2_tiny.yaml"
KINDS = ("plain", "float32", "bfloat16", "rounded")
WINDOW = 100
EVERY_STEP = """base_config: {config}
callbacks:
  - type: MFLossMonitor
    per_print_times: 1
  - type: CheckpointMonitor
    prefix: curve
    save_checkpoint_steps: 100000
"""


def write_weights(seed: int, folder: Path) -> None:
    """The weights of a seed, as they are and rounded to bfloat16: ``exact.ckpt`` and ``rounded.ckpt``."""
    import mindspore as ms

    from mindformers import AutoModel

    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(seed)
    network = AutoModel.from_config(str(CONFIG))
    ms.save_checkpoint(network, str(folder / "exact.ckpt"))
    for parameter in network.get_parameters():
        parameter.set_data(parameter.value().astype(ms.bfloat16).astype(ms.float32))
    ms.save_checkpoint(network, str(folder / "rounded.ckpt"))


def command(mode: str, seed: int, kind: str, output: Path, *words: str) -> str:
    """Run ``run_mindformer.py``; its output. Ends this program where it fails."""
    dtype = "bfloat16" if kind == "bfloat16" else "float32"
    options = [f"model.model_config.compute_dtype={dtype}"]
    environment = os.environ | {"MINDFORMERS_NATIVE": "0" if kind == "plain" else "1", "PYTHONPATH": str(REPO)}
    line = [sys.executable, "run_mindformer.py", "--run_mode", mode, "--seed", str(seed), "--output_dir", str(output)]
    run = subprocess.run(
        [*line, *words, "--options", *options], cwd=REPO, env=environment, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise SystemExit(f"{' '.join(line)}\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return run.stdout + run.stderr


def train(seed: int, kind: str, rate: float | None, data: Path, folder: Path) -> tuple[np.ndarray, float]:
    """Losses of all steps, and the loss on the validation records."""
    config, output = folder / "curve.yaml", folder / kind
    rate = [] if rate is None else ["--optimizer.learning_rate", str(rate)]
    config.write_text(EVERY_STEP.format(config=CONFIG), encoding="utf-8")
    weights = folder / ("rounded.ckpt" if kind == "rounded" else "exact.ckpt")
    words = ["--config", str(config), "--load_checkpoint", str(weights)]
    command("train", seed, kind, output, *words, *rate, "--train_dataset_dir", str(data / "train.mindrecord"))
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = np.array([json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)])
    words = ["--config", str(config), "--load_checkpoint", str(output / "checkpoint")]
    said = command("eval", seed, kind, output, *words, "--eval_dataset_dir", str(data / "valid.mindrecord"))
    return losses, float(re.findall(r"'loss': ([0-9.]+)", said)[-1])


def percent(value: float, reference: float) -> float:
    """Relative difference."""
    return 100 * (value / reference - 1)


def distances(losses: np.ndarray, plain: np.ndarray) -> dict[str, float]:
    """Relative differences of means in percent; the worst ones keep their sign."""
    smooth, expected = (np.convolve(x, np.ones(WINDOW) / WINDOW, "valid") for x in (losses, plain))
    windows, steps = percent(smooth, expected), percent(losses, plain)
    third = 2 * len(plain) // 3
    return {
        "all_percent": percent(losses.mean(), plain.mean()),
        "last_third_percent": percent(losses[third:].mean(), plain[third:].mean()),
        "worst_window_percent": windows[np.abs(windows).argmax()],
        "worst_step_percent": steps[np.abs(steps).argmax()],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--kinds", nargs="+", choices=KINDS[1:], default=list(KINDS[1:]))
    parser.add_argument("--learning-rate", type=float, help="highest of the schedule; default: the quickstart's")
    parser.add_argument("--data", type=Path, default=REPO / "quickstart", help="folder of the quickstart's records")
    parser.add_argument("--json", help="file the records are appended to")
    args = parser.parse_args()
    data = args.data.resolve()
    if not (data / "train.mindrecord").exists():
        raise SystemExit(f"no train.mindrecord in {data}: run bash scripts/quickstart.sh first, or give --data")
    records = []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory(prefix="mindformers-curve-") as folder:
            write_weights(seed, Path(folder))
            plain, plain_loss = train(seed, "plain", args.learning_rate, data, Path(folder))
            for kind in args.kinds:
                losses, loss = train(seed, kind, args.learning_rate, data, Path(folder))
                record = {"benchmark": "loss_curve", "seed": seed, "kind": kind, "steps": len(losses)}
                record |= {"learning_rate": args.learning_rate}
                record |= {name: float(value) for name, value in distances(losses, plain).items()}
                record |= {"eval_loss": loss, "plain_eval_loss": plain_loss, "eval_percent": percent(loss, plain_loss)}
                records.append(record)
                emit(record, args.json)
    for kind in args.kinds:
        found = [record for record in records if record["kind"] == kind]
        means = {key: float(np.mean([r[key] for r in found])) for key in found[0] if key.endswith("percent")}
        emit({"benchmark": "loss_curve", "seeds": len(found), "kind": kind, "mean": True, **means}, args.json)


if __name__ == "__main__":
    main()
