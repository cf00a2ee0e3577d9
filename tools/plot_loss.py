# SPDX-License-Identifier: Apache-2.0
"""Draw loss and learning rate of a run from its metrics.jsonl (needs matplotlib: extra "quickstart")."""

import argparse
import json
import os
import statistics
from pathlib import Path

from mindformers.errors import DataError, run_cli

SMOOTHING = 0.6  # weight of the past in the smoothed line


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics.jsonl in the order of their steps.

    A run that was killed and resumed has written some steps twice; the later record counts. A last line that
    is cut off is left out.

    Raises:
        DataError: no such file, or no record with a step and a loss in it.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; a training run writes metrics.jsonl into its output folder")
    records = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            records[int(record["step"])] = record | {"loss": float(record["loss"])}
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                raise DataError(f"{path}:{number}: not a record with a step and a loss: {line[:80]}") from error
    if not records:
        raise DataError(f"{path} holds no record with a step and a loss yet")
    return [records[step] for step in sorted(records)]


def smooth(values: list[float]) -> list[float]:
    """Exponential moving average, corrected for its start."""
    total, weight, result = 0.0, 0.0, []
    for value in values:
        total = SMOOTHING * total + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        result.append(total / weight)
    return result


def draw(records: list[dict], output: Path, title: str) -> None:
    """Write the picture (PNG); loss on the left axis, learning rate on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = [record["step"] for record in records]
    losses = [record["loss"] for record in records]
    figure, axis = pyplot.subplots(figsize=(8, 4.5), dpi=100, layout="constrained")
    axis.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="loss")
    axis.plot(steps, smooth(losses), color="tab:blue", linewidth=2, label="loss, smoothed")
    axis.set(xlabel="step", ylabel="loss per token", title=title)
    axis.grid(alpha=0.3)
    rate = axis.twinx()
    rate.plot(steps, [record["lr"] for record in records], color="tab:orange", linewidth=1, label="learning rate")
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.legend(handles=[*axis.get_lines(), *rate.get_lines()], loc="upper right", fontsize="small")
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    figure.savefig(temporary, format="png")
    os.replace(temporary, output)
    pyplot.close(figure)


def main() -> None:
    """Read the metrics, write the picture, say where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("metrics", type=Path, help="metrics.jsonl of a run")
    parser.add_argument("--output", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--title", default="training", help="text before the speed in the title")
    arguments = parser.parse_args()
    records = read_metrics(arguments.metrics)
    speed = statistics.median(record["tokens_per_second"] for record in records)
    draw(records, arguments.output, f"{arguments.title}, {speed:,.0f} tokens/s")
    first, last = records[0]["loss"], records[-1]["loss"]
    print(f"{arguments.output}: {len(records)} points, loss {first:.3f} -> {last:.3f}")


if __name__ == "__main__":
    run_cli(main)
