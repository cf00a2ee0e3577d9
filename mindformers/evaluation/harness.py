# SPDX-License-Identifier: Apache-2.0
"""Models of this library inside EleutherAI's lm-evaluation-harness (extra ``eval``, package lm-eval).

Requests are turned into tokens as the harness's own class for Hugging Face models does it, so that results can be
compared with published ones: bos before a text when the tokenizer adds it, contexts cut on the left.
"""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

from mindspore import nn
from tqdm import tqdm

from mindformers.errors import ConfigError, DataError, MindFormersError
from mindformers.evaluation.scoring import TextScorer
from mindformers.models.llama.llama_decoder import pack_weights
from mindformers.tools.logger import get_logger
from mindformers.tools.utils import did_you_mean

__all__ = ["HarnessMethods", "harness_model", "run_harness"]

logger = get_logger(__name__)

# Names under which a task may give the longest answer; the first one present counts.
_LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_GENERATION_NAMES = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "seed")


def harness_model(network: nn.Cell, tokenizer: Any, batch_size: int = 8) -> Any:
    """A model for ``lm_eval.simple_evaluate(model=...)``.

    Args:
        network: a LlamaForCausalLM with its weights.
        tokenizer: its tokenizer.
        batch_size: texts computed together.

    Raises:
        MindFormersError: lm-eval is not installed.
        ConfigError: an impossible batch size.
    """
    return _model_class()(pack_weights(network), tokenizer, batch_size)


def run_harness(model: Any, tasks: Sequence[str], include_path: str | None = None, **options: Any) -> dict[str, Any]:
    """Run tasks of the harness.

    Args:
        model: from :func:`harness_model`.
        tasks: names of tasks, groups or tags.
        include_path: a folder of task YAML files of the user's own.
        options: passed on to ``lm_eval.simple_evaluate`` (num_fewshot, limit, gen_kwargs, ...).

    Returns:
        The harness's dict: ``results`` holds ``{task: {"metric,filter": value}}``.

    Raises:
        ConfigError: a task nobody knows.
        DataError: the data of a task cannot be read or downloaded.
    """
    lm_eval = _import_lm_eval()
    from lm_eval.tasks import TaskManager

    try:
        manager = TaskManager(include_path=include_path)
        unknown = [name for name in tasks if not manager.match_tasks([name])]
        if unknown:
            raise ConfigError(f"no task is called {unknown[0]!r}.{did_you_mean(unknown[0], manager.all_tasks)}")
        return lm_eval.simple_evaluate(
            model=model, tasks=list(tasks), task_manager=manager, batch_size=model.batch_size, **options
        )
    except OSError as error:  # files and networks; the harness and `datasets` raise no common class of their own
        raise DataError(
            f"the data of {', '.join(tasks)} cannot be loaded: {error}. Most tasks are downloaded from the Hugging "
            "Face hub; without a network use a task of your own with local data: --include_path DIR "
            "(docs/evaluation.md)"
        ) from error


def _import_lm_eval() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        raise MindFormersError(
            f"lm-evaluation-harness cannot be imported ({error}): pip install 'mindformers[eval]'"
        ) from error
    return lm_eval


@functools.cache
def _model_class() -> type:
    """The model class; made when it is first used, since its base comes from an extra."""
    _import_lm_eval()
    from lm_eval.api.model import TemplateLM

    return type("MindFormersLM", (HarnessMethods, TemplateLM), {"__doc__": HarnessMethods.__doc__})


class HarnessMethods:
    """What the harness asks of a model: loglikelihood (by its base class), loglikelihood_rolling, generate_until.

    Args:
        network: a LlamaForCausalLM with its weights.
        tokenizer: its tokenizer.
        batch_size: texts computed together.
    """

    max_gen_toks = 256  # longest answer when a task does not say; the harness's own default

    def __init__(self, network: nn.Cell, tokenizer: Any, batch_size: int = 8) -> None:
        super().__init__()
        self.scorer = TextScorer(network, batch_size)
        self.network = network
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    @property
    def max_length(self) -> int:
        """Tokens the model reads at once."""
        return self.scorer.max_length

    @property
    def eot_token_id(self) -> int:
        """Id that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """Id before a text that has no context: bos, as for Hugging Face models."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Part of the name of cached requests."""
        return str(getattr(self.tokenizer, "name_or_path", "") or type(self.tokenizer).__name__)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text; bos comes first unless the text begins with it, or ``add_special_tokens`` says otherwise."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        return list(self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"])

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ids."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Score tokenized requests ((context, continuation) texts, context ids, continuation ids)."""
        results = self.scorer.score([(context, rest) for _, context, rest in requests], not disable_tqdm)
        for (texts, _, _), result in zip(requests, results, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, each token once, in windows of the model's length."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows: list[tuple[list[int], list[int]]] = []
        counts = []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            found = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            own = [make_disjoint_window(pair) for pair in found]
            windows += own
            counts.append(len(own))
        scores = iter(self.scorer.score(windows, not disable_tqdm))
        results = []
        for request, count in zip(requests, counts, strict=True):
            results.append(sum(next(scores)[0] for _ in range(count)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, results[-1])
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue contexts up to the first stop text; one group of batches per set of options."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        results = [""] * len(requests)
        with tqdm(total=len(requests), desc="generate", unit="text", disable=disable_tqdm or None) as bar:
            for numbers in groups.values():
                until, longest, settings = self._options(requests[numbers[0]].args[1])
                prompts = {n: self.tok_encode(requests[n].args[0])[-(self.max_length - longest) :] for n in numbers}
                ordered = sorted(numbers, key=lambda n: -len(prompts[n]))
                for start in range(0, len(ordered), self.batch_size):
                    batch = ordered[start : start + self.batch_size]
                    texts = self._generate([prompts[n] for n in batch], until, longest, settings)
                    for number, text in zip(batch, texts, strict=True):
                        results[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    bar.update(len(batch))
        return results

    def _options(self, given: dict[str, Any]) -> tuple[list[str], int, dict[str, Any]]:
        """Stop texts, longest answer in tokens and settings of generation that a task's ``generation_kwargs`` mean."""
        rest = dict(given)
        until = rest.pop("until", None) or []
        lengths = [rest.pop(name) for name in _LENGTH_NAMES if name in rest]
        longest = int(lengths[0]) if lengths else self.max_gen_toks
        if not 0 < longest < self.max_length:
            raise ConfigError(
                f"a task asks for {longest} new tokens, but the model reads {self.max_length} in all: "
                "set --gen_kwargs max_gen_toks=N below that"
            )
        unknown = [name for name in rest if name not in _GENERATION_NAMES]
        if unknown:
            raise ConfigError(
                f"generation option {unknown[0]!r} is not known.{did_you_mean(unknown[0], _GENERATION_NAMES)}"
            )
        if not rest.get("do_sample") or rest.get("temperature") == 0:
            rest = {key: value for key, value in rest.items() if key == "repetition_penalty"} | {"do_sample": False}
        return [until] if isinstance(until, str) else list(until), longest, rest

    def _generate(self, prompts: list[list[int]], until: list[str], longest: int, settings: dict) -> list[str]:
        """New texts up to the first stop text; the batch is filled up so that it needs no graph of its own."""
        rows = prompts + [prompts[-1]] * (self.batch_size - len(prompts))
        options = {"max_new_tokens": longest, "use_past": True, "repetition_penalty": 1.0, **settings}
        outputs = self.network.generate(rows, stop=_stop_at(until, self.tok_decode), **options)
        texts = []
        for prompt, output in zip(prompts, outputs, strict=False):
            text = self.tok_decode(output[len(prompt) :].tolist())
            for stop in filter(None, until):
                text = text.split(stop)[0]
            texts.append(text)
        return texts


def _stop_at(until: Sequence[str], decode: Callable[[Sequence[int]], str]) -> Callable[[Sequence[int]], bool] | None:
    """Tells when one of the texts has appeared; only the end of a row, where it must be, is decoded."""
    stops = [stop for stop in until if stop]
    if not stops:
        return None
    reach = 4 * max(map(len, stops)) + 8  # a character may be four tokens of one byte

    def stop(new: Sequence[int]) -> bool:
        text = decode(new[-reach:])
        return any(mark in text for mark in stops)

    return stop
