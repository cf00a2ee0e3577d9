# SPDX-License-Identifier: Apache-2.0
"""Trainer from a script: what its arguments mean, its verbs, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mindformers import AutoModel, MindFormerConfig, Trainer, TrainingArguments, load_config
from mindformers.core.callback import MFLossMonitor
from mindformers.errors import CheckpointError, ConfigError
from mindformers.trainer import (
    CheckpointConfig,
    ConfigArguments,
    DataLoaderConfig,
    DatasetConfig,
    LRConfig,
    OptimizerConfig,
    RunnerConfig,
    WrapperConfig,
)
from tests.helpers import REPO
from tests.unit.api.conftest import SEQ, tiny

STEPS = 4  # 18 records, batches of 4


def arguments(**changes: Any) -> TrainingArguments:
    values = {"output_dir": "out", "batch_size": 4, "num_train_epochs": 1, "learning_rate": 1e-3, "save_steps": 2,
              "lr_scheduler_type": "linear", "warmup_steps": 1}  # fmt: skip
    return TrainingArguments(**{**values, **changes})


def losses(folder: str) -> list[float]:
    return [json.loads(line)["loss"] for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(model_dir: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    """A run of one epoch from the directory's weights, in a folder of its own."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = Trainer(
        arguments(output_dir=str(folder), per_device_eval_batch_size=3), "text_generation", str(model_dir),
        train_dataset=str(records / "train.mindrecord"), eval_dataset=str(records / "valid.mindrecord"),
    )  # fmt: skip
    assert list(folder.iterdir()) == []  # constructing writes nothing
    trainer.finetune(do_eval=True)
    return trainer, folder


def test_training_writes_a_run_and_keeps_the_settings(trained: tuple) -> None:
    trainer, folder = trained
    assert len(losses(str(folder))) == STEPS
    assert trainer.config.run_mode == "train"  # a verb changes nothing for the next one
    written = load_config(folder / "config.yaml")
    assert (written.run_mode, written.runner_config.epochs) == ("finetune", 1)
    assert written.lr_schedule.type == "linear"
    assert trainer.get_last_checkpoint().endswith("-1_4.ckpt")


def test_evaluate_returns_the_metrics_of_the_trained_weights(trained: tuple, records: Path) -> None:
    trainer, folder = trained
    result = trainer.evaluate()
    values = result["PerplexityMetric"]
    assert values["PPL"] == pytest.approx(np.exp(values["loss"]))
    again = Trainer(model=str(folder), eval_dataset=str(records / "valid.mindrecord"))  # an output folder is a model
    assert again.evaluate()["PerplexityMetric"]["loss"] == pytest.approx(values["loss"], rel=1e-6)
    newest = Trainer(arguments(output_dir=str(folder)), model=str(folder), eval_dataset=again.get_eval_dataloader())
    assert newest.evaluate(eval_checkpoint=True)["PerplexityMetric"]["loss"] == pytest.approx(values["loss"], rel=1e-6)


def test_predict_takes_settings_per_call(trained: tuple, tmp_path: Path) -> None:
    trainer, _ = trained
    short = trainer.predict(input_data="the quick", max_new_tokens=1)
    long = trainer.predict(input_data="the quick", max_new_tokens=3, save_file="texts.txt")
    assert long[0]["text_generation_text"][0].startswith(short[0]["text_generation_text"][0])
    assert long != short
    assert Path("texts.txt").read_text(encoding="utf-8").strip() == str(long)
    pair = trainer.predict(input_data=["the quick", "a lazy"], batch_size=2, max_new_tokens=3)
    assert len(pair[0]["text_generation_text"]) == 2
    assert pair[0]["text_generation_text"][0] == long[0]["text_generation_text"][0]
    (tmp_path / "prompts.txt").write_text("the quick\n", encoding="utf-8")
    assert trainer.predict(input_data=str(tmp_path / "prompts.txt"), max_new_tokens=3) == long
    with pytest.raises(ConfigError, match="Did you mean 'max_new_tokens'"):
        trainer.predict(input_data="a", max_newtokens=1)
    with pytest.raises(ConfigError, match="input_data"):
        trainer.predict()


def test_resume_goes_on_at_the_step(trained: tuple, model_dir: Path, records: Path) -> None:
    _, folder = trained
    before = losses(str(folder))[:STEPS]
    again = Trainer(
        arguments(output_dir=str(folder), num_train_epochs=2), model=str(model_dir),
        train_dataset=str(records / "train.mindrecord"),
    )  # fmt: skip
    again.train(resume_training=True)
    assert losses(str(folder))[:STEPS] == before
    assert len(losses(str(folder))) == 2 * STEPS
    with pytest.raises(ConfigError, match="nothing is left to do"):
        again.train(resume_training=str(folder))


def test_train_from_a_checkpoint_differs_from_random(model: Any, model_dir: Path, records: Path) -> None:
    first = {}
    for name, checkpoint in (("random", None), ("loaded", str(model_dir))):
        args = arguments(output_dir=name, save_strategy="no", save_steps=None)
        trainer = Trainer(args, model=str(model_dir), train_dataset=str(records / "train.mindrecord"))
        assert [c.type for c in trainer.config.callbacks if "Mon" in c.type] == ["MFLossMonitor", "ObsMonitor"]
        trainer.train(train_checkpoint=checkpoint)
        first[name] = losses(name)[0]
        assert not Path(name, "checkpoint").exists()
    assert first["random"] == pytest.approx(np.log(400), abs=0.3)
    assert abs(first["random"] - first["loaded"]) > 0.5


def test_objects_of_the_script(model_dir: Path, records: Path) -> None:
    import mindspore as ms

    class Counter(ms.Callback):
        """Counts steps."""

        steps = 0

        def on_train_step_end(self, run_context: Any) -> None:
            self.steps += 1

    model = AutoModel.from_pretrained(model_dir)
    before = model.lm_head.weight.asnumpy().copy()
    counter, monitor = Counter(), MFLossMonitor(per_print_times=2)
    optimizer = ms.nn.SGD(model.trainable_params(), learning_rate=0.5)
    file = str(records / "train.mindrecord")
    dataset = Trainer(arguments(), model=model, train_dataset=file).get_train_dataloader()
    trainer = Trainer(arguments(save_steps=100), model=model, train_dataset=dataset, optimizers=optimizer,
                      callbacks=[counter, monitor])  # fmt: skip
    trainer.finetune()  # the object's own weights count
    assert counter.steps == STEPS
    assert len(losses("out")) == 3  # steps 1, 2, 4: the script's monitor replaced the config's
    assert np.abs(model.lm_head.weight.asnumpy() - before).max() > 1e-4
    assert trainer.config.model.config.hidden_size == 32


def test_finetune_without_a_checkpoint_is_an_error(records: Path, tmp_path: Path) -> None:
    model = AutoModel.from_config(tiny())
    trainer = Trainer(arguments(), model=model, train_dataset=str(records / "train.mindrecord"))
    with pytest.raises((CheckpointError, ConfigError), match="needs weights"):
        trainer.finetune()
    tiny().save_pretrained(tmp_path / "bare")
    trainer = Trainer(arguments(), model=str(tmp_path / "bare"), train_dataset=str(records / "train.mindrecord"))
    with pytest.raises(ConfigError, match="weights"):
        trainer.finetune()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        trainer.train(train_checkpoint=True)
    with pytest.raises(ConfigError, match=r"nowhere\.ckpt"):
        trainer.predict("nowhere.ckpt", input_data="a")
    assert not Path("out").exists()  # nothing was written by any of them


def test_a_checkpoint_with_gaps_leaves_random_values_in_them(model_dir: Path, model: Any, tmp_path: Path) -> None:
    from mindformers.checkpoint.save import save_network

    partial = {p.name: p for p in model.get_parameters() if "lm_head" not in p.name}
    save_network(partial, tmp_path / "partial.ckpt")
    trainer = Trainer({"load_checkpoint_strict": False}, model=model_dir)
    trainer.predict(tmp_path / "partial.ckpt", input_data="the fox", max_new_tokens=1)
    loaded = {p.name: p.asnumpy() for p in trainer._network.get_parameters()}
    assert 0.005 < loaded["lm_head.weight"].std() < 0.02  # initializer_range 0.01
    np.testing.assert_array_equal(loaded["model.norm_out.weight"], model.model.norm_out.weight.asnumpy())


def test_args_in_every_form(model_dir: Path) -> None:
    by_dict = Trainer({"runner_config": {"epochs": 7}, "model": {"model_config": {"seq_length": 16}}}, model=model_dir)
    assert (by_dict.config.runner_config.epochs, by_dict.config.model.config.seq_length) == (7, 16)
    assert by_dict.config.model.config.hidden_size == 32
    by_name = Trainer(TrainingArguments(num_train_epochs=3), model="llama2_7b")
    assert (by_name.config.runner_config.epochs, by_name.config.model.config.num_layers) == (3, 32)
    assert (by_name.config.use_parallel, by_name.config.context.device_target) == (False, "CPU")
    by_yaml = Trainer(str(REPO / "configs/llama2/run_llama2_tiny.yaml"))
    assert by_yaml.config.runner_config.epochs == 5
    loaded = load_config("run_llama2_tiny")
    by_config = Trainer(loaded, train_dataset="elsewhere")
    assert by_config.config.train_dataset.data_loader.dataset_dir == "elsewhere"
    assert loaded.train_dataset.data_loader.dataset_dir == "./quickstart/train.mindrecord"  # the caller's stays
    view = MindFormerConfig(str(REPO / "configs/llama2/run_llama2_tiny.yaml"))
    view.runner_config.epochs = 9
    assert Trainer(view).config.runner_config.epochs == 9
    swapped = Trainer(loaded, model=model_dir)
    assert (swapped.config.model.config.hidden_size, swapped.config.runner_config.epochs) == (32, 5)
    assert swapped.config.processor.tokenizer.vocab_file == str(model_dir / "tokenizer.model")
    lora = Trainer(model="llama2_7b", pet_method="lora").config.model.config.pet_config
    assert lora.target_modules == ".*wq|.*wk|.*wv|.*wo"


def test_config_arguments(model_dir: Path) -> None:
    args = ConfigArguments(
        output_dir="elsewhere",
        seed=5,
        runner_config=RunnerConfig(epochs=3, batch_size=2),
        optimizer=OptimizerConfig(optim_type="AdamW", learning_rate=1e-3, betas=(0.9, 0.99)),
        lr_schedule=LRConfig(lr_type="linear", learning_rate=1e-3, warmup_steps=2),
        runner_wrapper=WrapperConfig(use_clip_grad=False),
        save_checkpoint=CheckpointConfig(prefix="mine"),
        train_dataset=DatasetConfig(data_loader=DataLoaderConfig(dataset_dir="records")),
    )
    config = Trainer(args, model=model_dir).config
    assert (config.output_dir, config.seed, config.runner_config.batch_size) == ("elsewhere", 5, 2)
    assert (config.optimizer.type, config.optimizer.betas) == ("AdamW", (0.9, 0.99))
    assert (config.lr_schedule.type, config.lr_schedule.warmup_steps) == ("linear", 2)
    assert config.runner_wrapper.use_clip_grad is False
    assert config.train_dataset.data_loader.dataset_dir == "records"
    assert [c.prefix for c in config.callbacks if c.type == "CheckpointMonitor"] == ["mine"]
    with pytest.raises(ConfigError, match="Did you mean 'epochs'"):
        RunnerConfig(epoch=3)
    with pytest.raises(ConfigError, match="must be a RunnerConfig"):
        ConfigArguments(runner_config={"epochs": 3})
    with pytest.raises(ConfigError, match="epochs"):
        Trainer(ConfigArguments(runner_config=RunnerConfig(epochs="many")), model=model_dir)


def test_settings_after_construction(model_dir: Path) -> None:
    trainer = Trainer(model=model_dir)
    trainer.set_parallel_config(data_parallel=2, model_parallel=2, micro_batch_interleave_num=2)
    assert trainer.config.parallel_config.ranks == 4
    assert trainer.config.micro_batch_interleave_num == 2
    trainer.set_recompute_config(recompute=True)
    assert trainer.config.recompute_config.recompute
    assert trainer.get_last_checkpoint() is None
    with pytest.raises(ConfigError, match="Did you mean 'model_parallel'"):
        trainer.set_parallel_config(model_paralel=2)
    with pytest.raises(ConfigError, match="recompute"):
        trainer.set_recompute_config(recomputes=True)


def test_wrong_arguments(model: Any, model_dir: Path, tmp_path: Path) -> None:
    import mindspore as ms

    other = AutoModel.from_config(tiny())
    sgd = ms.nn.SGD(other.trainable_params(), learning_rate=0.1)
    (tmp_path / "typo.yaml").write_text(yaml.safe_dump({"runner_config": {"epoch": 3}}), encoding="utf-8")
    for call, message in (
        (lambda: Trainer(), "needs to know the model"),
        (lambda: Trainer(task="translation", model=model_dir), "text_generation"),
        (lambda: Trainer(model="llama27b"), "Did you mean 'llama2_7b'"),
        (lambda: Trainer(model=3), "int"),
        (lambda: Trainer(3, model=model_dir), "args is int"),
        (lambda: Trainer(str(tmp_path / "typo.yaml")), "Did you mean 'epochs'"),
        (lambda: Trainer({"runner_config": {"epoch": 3}}, model=model_dir), "Did you mean 'epochs'"),
        (lambda: Trainer({"model": {"model_config": {"hidden_size": 64}}}, model=model), "already built"),
        (lambda: Trainer(model=model, optimizers=sgd), "another model"),
        (lambda: Trainer(model=model_dir, optimizers=sgd), "give the model object"),
        (lambda: Trainer(model=model, optimizers=3), "Optimizer"),
        (lambda: Trainer(model=model, callbacks=[3]), "int"),
        (lambda: Trainer(model=model, eval_callbacks=[ms.Callback()]), "eval_callbacks"),
        (lambda: Trainer(model=model, compute_metrics=3), "registered metric"),
        (lambda: Trainer(model=model, compute_metrics="Perplexity"), "Did you mean 'PerplexityMetric'"),
        (lambda: Trainer(model=model, train_dataset=[1]), "MindSpore dataset"),
        (lambda: Trainer(model=model, pet_method="p-tuning"), "lora"),
        (lambda: Trainer(model=model_dir).train(), "no data given"),
        (lambda: Trainer(model=model_dir).evaluate(), "no data given"),
        (lambda: Trainer(arguments(), model=model_dir, train_dataset="nowhere").train(), "nowhere"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()
    assert model.config.seq_length == SEQ
