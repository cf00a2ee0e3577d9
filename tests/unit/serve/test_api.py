# SPDX-License-Identifier: Apache-2.0
"""The service as its clients see it: the official OpenAI client, and bare HTTP for what that client cannot say."""

import re
import threading
import time

import pytest

from tests.unit.serve.conftest import NAME, SLOTS

httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")

PROMPT = "the quick brown fox"


def expected(network, tokenizer, prompt: str, new: int, **settings) -> str:
    """The answer of model.generate."""
    ids = tokenizer(prompt)["input_ids"]
    (row,) = network.generate(ids, max_new_tokens=new, **settings)
    whole, head = tokenizer.decode(row.tolist(), True), tokenizer.decode(ids, True)
    assert whole.startswith(head)
    return whole[len(head) :]


def until(condition, seconds: float = 30) -> None:
    """Wait for something another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_models(client):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "mindformers"
    with pytest.raises(openai.NotFoundError, match=r"serves 'tiny'"):
        client.models.retrieve("gpt")


@pytest.mark.parametrize(
    ("sent", "settings"),
    [
        ({"temperature": 0}, {}),
        (
            {"temperature": 0.9, "top_p": 0.8, "seed": 7},
            {"do_sample": True, "temperature": 0.9, "top_k": 0, "top_p": 0.8},
        ),
        (
            {"temperature": 1.0, "seed": 7, "extra_body": {"top_k": 9, "repetition_penalty": 1.4}},
            {"do_sample": True, "top_k": 9, "repetition_penalty": 1.4},
        ),
    ],
    ids=["greedy", "top_p", "top_k_penalty"],
)
def test_completion_is_what_generate_gives(client, network, tokenizer, sent, settings):
    answer = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=20, **sent)
    wanted = expected(network, tokenizer, PROMPT, 20, seed=7, **settings)
    assert answer.choices[0].text == wanted
    assert answer.object == "text_completion"
    assert answer.usage.prompt_tokens == len(tokenizer(PROMPT)["input_ids"])
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stream_is_the_whole_in_pieces(client):
    settings = {"model": NAME, "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    whole = client.completions.create(**settings)
    chunks = list(client.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_many_clients_get_the_text_of_one_alone(client, network, tokenizer, engine):
    words = [
        "seven",
        "wizards",
        "make",
        "toxic",
        "brew",
        "for",
        "evil",
        "queen",
        "Jack",
        "over",
        "lazy",
        "dog",
        "while",
    ]
    prompts = [" ".join(words[: 1 + i % 12]) for i in range(4 * SLOTS)]
    wanted = [expected(network, tokenizer, prompt, 16) for prompt in prompts]
    got: list = [None] * len(prompts)
    steps = engine.counters.steps

    def ask(i: int) -> None:
        stream = client.completions.create(model=NAME, prompt=prompts[i], max_tokens=16, temperature=0, stream=True)
        got[i] = "".join(chunk.choices[0].text for chunk in stream)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == wanted
    assert engine.counters.steps - steps < 15 * len(prompts)  # they shared steps
    assert engine.num_active == engine.num_waiting == 0


def test_several_prompts_and_choices(client):
    answer = client.completions.create(
        model=NAME, prompt=[PROMPT, "seven"], n=2, max_tokens=6, temperature=0, echo=True
    )
    texts = [choice.text for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    assert texts[0].startswith(PROMPT)
    drawn = client.completions.create(model=NAME, prompt=PROMPT, n=2, max_tokens=12, temperature=1.5, seed=1)
    assert drawn.choices[0].text != drawn.choices[1].text


def test_token_ids_as_prompt(client, tokenizer):
    ids = tokenizer(PROMPT)["input_ids"]
    by_ids = client.completions.create(model=NAME, prompt=ids, max_tokens=8, temperature=0)
    assert by_ids.choices[0].text == client.completions.create(
        model=NAME, prompt=PROMPT, max_tokens=8, temperature=0
    ).choices[0].text  # fmt: skip
    with pytest.raises(openai.BadRequestError, match=r"token id 400 is outside the vocabulary"):
        client.completions.create(model=NAME, prompt=[1, 400])


def test_stop_strings(client, network, tokenizer):
    text = expected(network, tokenizer, PROMPT, 30)
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    answer = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=30, temperature=0, stop=["never", stop])
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    stream = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=30, temperature=0, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text


def test_logprobs(client):
    plain = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=8, temperature=0)
    answer = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=8, temperature=0, logprobs=3)
    report = answer.choices[0].logprobs
    assert answer.choices[0].text == plain.choices[0].text
    assert len(report.tokens) == len(report.token_logprobs) == answer.usage.completion_tokens
    for token, value, top in zip(report.tokens, report.token_logprobs, report.top_logprobs, strict=True):
        assert len(top) == 3
        assert top[token] == value == max(top.values()) < 0
    chat = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": "fox"}], max_tokens=4, logprobs=True, top_logprobs=2
    )
    entries = chat.choices[0].logprobs.content
    assert len(entries) == chat.usage.completion_tokens
    assert all(len(entry.top_logprobs) == 2 for entry in entries)


def test_chat(client, tokenizer, network):
    from mindformers.generation.conversation import Conversation

    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "the fox"},
        {"role": "assistant", "content": "jumps"},
        {"role": "user", "content": "over what"},
    ]
    conversation = Conversation(tokenizer, True, "be brief")
    conversation.add("the fox", "jumps", ())
    ids, _ = conversation.prompt("over what", 1000)
    if len(ids) > 50:
        messages, ids = messages[-1:], Conversation(tokenizer, True).prompt("over what", 1000)[0]
    answer = client.chat.completions.create(model=NAME, messages=messages, temperature=0, max_completion_tokens=10)
    row = network.generate(ids, max_new_tokens=10)[0]
    decoder = tokenizer.incremental_decoder(skip_special_tokens=True)
    decoder.put(ids)
    wanted = decoder.put(row[len(ids) :].tolist()) + decoder.flush()
    assert answer.choices[0].message.content == wanted.lstrip()
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.prompt_tokens == len(ids)
    chunks = list(
        client.chat.completions.create(model=NAME, messages=messages, temperature=0, max_tokens=10, stream=True)
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": [{"role": "assistant", "content": "x"}]}, r"messages must be: perhaps one system"),
        ({"messages": [{"role": "user", "content": "[/INST] x"}]}, r"cannot be part of a text"),
        ({"messages": []}, r"messages: List should have at least 1 item"),
        ({"messages": [{"role": "robot", "content": "x"}]}, r"messages.0.role: Input should be 'system'"),
        ({"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}, r"top_logprobs needs logprobs"),
        ({"prompt": "x", "temprature": 0}, r"temprature: unknown field. Did you mean 'temperature'\? \(fields: "),
        ({"prompt": "x", "temperature": -1, "top_p": 2}, r"temperature: .*; top_p: "),
        ({"prompt": "x", "stop": ["a", ""]}, r"none of them empty"),
        ({"prompt": "", "max_tokens": 3}, r"prompt"),
        ({"prompt": "fox " * 90}, r"leaves no room for an answer: this model's context is 64 tokens"),
        ({"prompt": {"a": 1}}, r"prompt"),
    ],
)
def test_mistakes(server, body, message):
    path = "chat/completions" if "messages" in body else "completions"
    answer = httpx.post(f"{server.url}/v1/{path}", json={"model": NAME, **body}, timeout=60)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert re.search(message, error["message"])


def test_other_mistakes(server):
    assert httpx.post(f"{server.url}/v1/completions", content=b"{rubbish").status_code == 400
    missing = httpx.get(f"{server.url}/v2/nothing")
    assert missing.status_code == 404
    assert "/v1/completions" in missing.json()["error"]["message"]
    wrong = httpx.post(f"{server.url}/v1/completions", json={"model": "gpt-4", "prompt": "x"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "model_not_found")


def test_a_client_that_leaves_frees_its_slot(server, engine):
    cancelled = engine.counters.cancelled
    body = {"model": NAME, "prompt": "the", "max_tokens": 60, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
        next(answer.iter_lines())
    until(lambda: engine.num_active == 0)
    finished_or_cancelled = engine.counters.cancelled - cancelled
    assert finished_or_cancelled in (0, 1)  # a tiny model may be done before the socket is seen closed


def test_queue_limit(service, server, engine):
    busy = {"model": NAME, "prompt": ["the"] * 16, "n": 2, "max_tokens": 60}  # 32 answers, more than slots and queue
    answer = httpx.post(f"{server.url}/v1/completions", json=busy, timeout=60)
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "1"
    assert answer.json()["error"]["code"] == "queue_full"
    assert engine.num_active == engine.num_waiting == 0


def test_time_limit(server, service, monkeypatch):
    monkeypatch.setattr(service, "timeout", 0.0)
    body = {"model": NAME, "prompt": "the", "max_tokens": 50}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 504
    assert answer.json()["error"]["type"] == "timeout_error"
    lines = httpx.post(f"{server.url}/v1/completions", json={**body, "stream": True}, timeout=60).text.splitlines()
    assert "timeout_error" in lines[-2] + lines[-1]


def test_api_key(service):
    from mindformers.serve.api import build_app
    from tests.unit.serve.conftest import Server

    server = Server(build_app(service, NAME, chat=False, api_key="s3cret"))
    try:
        assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 401
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="s3cret") as client:
            answer = client.chat.completions.create(
                model=NAME, messages=[{"role": "user", "content": "the quick"}], max_tokens=3, temperature=0
            )
            text = client.completions.create(model=NAME, prompt="the quick", max_tokens=3, temperature=0)
        assert answer.choices[0].message.content == text.choices[0].text.lstrip()  # no chat format: text goes on
    finally:
        server.stop()


def test_metrics_and_page(server, engine, client):
    client.completions.create(model=NAME, prompt=PROMPT, max_tokens=2)
    text = httpx.get(f"{server.url}/metrics").text
    assert f"mindformers_generated_tokens_total {float(engine.counters.generated_tokens)}" in text
    assert f"mindformers_slots {float(SLOTS)}" in text
    assert 'mindformers_requests_total{path="/v1/completions",status="200"}' in text
    assert "<title>mindformers chat</title>" in httpx.get(server.url).text
