# SPDX-License-Identifier: Apache-2.0
"""Adapters against PEFT: loss, gradients of A and B, merged logits, and files in both directions."""

from pathlib import Path

import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, value_and_grad

from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.pet import LoraConfig, get_pet_model
from mindformers.pet.adapter import is_adapter_name
from mindformers.pet.adapter_file import read_adapter
from mindformers.pet.peft_format import PEFT_MODULES
from mindformers.tools import merge_lora
from tests.parity.llama_cases import fill, formula_weight, hf_model, hf_name, records, tiny_config
from tests.parity.test_llama_golden import relative_error

torch = pytest.importorskip("torch", reason="extra `test` brings torch")
peft = pytest.importorskip("peft", reason="extra `test` brings peft")

TOLERANCE = 1e-5
RANK, ALPHA = 4, 6


def ours(targets: str = "w", **fields: object) -> LlamaForCausalLM:
    """Our tiny model with adapters, every weight by its formula."""
    network = LlamaForCausalLM(tiny_config("gqa_grouped"))
    types = {"param_init_type": "float32", "compute_dtype": "float32"}
    config = {"lora_rank": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "target_modules": targets}
    get_pet_model(network, LoraConfig(**config, **types, **fields))
    fill(network)
    return network


def peft_name(name: str) -> str:
    """PEFT's name of one of our adapter's parameters."""
    inner = hf_name(name).replace("mindpet_delta_lora_a", "lora_A").replace("mindpet_delta_lora_b", "lora_B")
    return f"base_model.model.{inner}.default.weight"


def theirs(leaves: list[str]) -> object:
    """PEFT's model with the same weights."""
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=leaves, lora_dropout=0.0, task_type="CAUSAL_LM")
    model = peft.get_peft_model(hf_model("gqa_grouped"), config)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for parameter in ours().get_parameters():
            if is_adapter_name(parameter.name) and peft_name(parameter.name) in parameters:
                weight = formula_weight(parameter.name, parameter.shape)
                parameters[peft_name(parameter.name)].copy_(torch.from_numpy(weight))
    return model


ALL = [module.rpartition(".")[2] for module in PEFT_MODULES.values()]


def logits_of_torch(model: object) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(records(False)[:, :-1]).long()).logits.numpy()


def logits_of(network: LlamaForCausalLM) -> np.ndarray:
    return network.set_train(False)(Tensor(records(False)[:, :-1]))[0].asnumpy()


def save_base(network: LlamaForCausalLM, path: Path) -> Path:
    from mindformers.checkpoint.save import save_network

    weights = {p.name: p for p in network.get_parameters() if not is_adapter_name(p.name)}
    save_network(weights, path, fmt=path.suffix[1:])
    return path


def load(path: Path) -> LlamaForCausalLM:
    from mindformers.checkpoint.load import load_into, read_checkpoint

    network = LlamaForCausalLM(tiny_config("gqa_grouped"))
    load_into(network, read_checkpoint(path))
    return network


def test_loss_and_gradients_of_a_and_b() -> None:
    network, model = ours().set_train(True), theirs(ALL)
    trained = ParameterTuple(network.trainable_params())
    loss, gradients = value_and_grad(network, None, trained)(Tensor(records(True)))
    ids = torch.from_numpy(records(True).astype(np.int64))
    labels = ids[:, 1:].clone()
    labels[labels == 0] = -100
    logits = model(ids[:, :-1], attention_mask=(ids[:, :-1] != 0).long()).logits
    expected = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
    expected.backward()
    assert abs(float(loss) - float(expected)) < TOLERANCE * float(expected)
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert len(grads) == len(trained) == 2 * 7 * 2
    for parameter, gradient in zip(trained, gradients, strict=True):
        assert relative_error(gradient.asnumpy(), grads[peft_name(parameter.name)].numpy()) < TOLERANCE, parameter.name


@pytest.mark.parametrize("base_format", ["safetensors", "ckpt"])
def test_adapter_of_peft_imported_and_merged(tmp_path: Path, base_format: str) -> None:
    model = theirs(["q_proj", "v_proj", "down_proj"])
    model.save_pretrained(tmp_path / "peft")
    expected = logits_of_torch(model)
    network = ours()
    base = save_base(network, tmp_path / f"base.{base_format}")
    merged = tmp_path / f"merged.{base_format}"
    words = ["--base", str(base), "--adapter", str(tmp_path / "peft"), "--output", str(merged), "--check"]
    assert merge_lora.main(words) == 0
    ours_merged = logits_of(load(merged))
    assert relative_error(ours_merged, expected) < TOLERANCE
    assert relative_error(ours_merged, logits_of_torch(model.merge_and_unload())) < TOLERANCE
    assert relative_error(ours_merged, logits_of(load(base))) > 1e-2  # it did change something


def test_export_is_loaded_by_peft_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    from mindformers.checkpoint.save import save_network
    from mindformers.pet.adapter_file import describe_adapter

    network = ours("wq|wo|w1", exclude_layers=r"model\.layers\.0\.attention\.wo")
    config = LoraConfig(lora_rank=RANK, lora_alpha=ALPHA, target_modules="wq|wo|w1")
    adapter = {p.name: p for p in network.trainable_params()}
    path = tmp_path / "adapter.safetensors"
    about = describe_adapter(network, config, tmp_path / "base.ckpt")
    save_network(adapter, path, manifest_fields={"adapter": about}, fmt="safetensors")
    assert merge_lora.main(["--adapter", str(path), "--to_peft", str(tmp_path / "peft")]) == 0
    model = peft.PeftModel.from_pretrained(hf_model("gqa_grouped"), str(tmp_path / "peft"))
    assert relative_error(logits_of(network), logits_of_torch(model)) < TOLERANCE
    again = tmp_path / "again.safetensors"
    assert merge_lora.main(["--adapter", str(tmp_path / "peft"), "--to_mindformers", str(again)]) == 0
    back = read_adapter(again)
    assert (back.config.lora_rank, back.config.lora_alpha) == (RANK, ALPHA)
    assert set(back.tensors) == set(adapter)
    for name, value in adapter.items():
        assert back.tensors[name].asnumpy().tobytes() == value.asnumpy().tobytes()
    second = LlamaForCausalLM(tiny_config("gqa_grouped"))
    get_pet_model(second, back.config)  # the layers it names are those it has, the excluded one left out
    assert {p.name for p in second.trainable_params()} == set(adapter)


def test_rank_stabilised_scale_is_converted(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["v_proj"], use_rslora=True)
    peft.get_peft_model(hf_model("gqa_grouped"), config).save_pretrained(tmp_path)
    found = read_adapter(tmp_path).config
    assert found.lora_alpha / found.lora_rank == pytest.approx(ALPHA / RANK**0.5)
