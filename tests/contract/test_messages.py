"""What a client hears about a prompt, in which order, and what history keeps of it."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from tests.contract import recording
from tests.contract.driver import Binary, Comfy, Graph, Listener, empty, empty_to_save, sampler_graph, step_of


def heard(listener: Listener, since: int = 0) -> list[Any]:
    """The messages of a listener, made comparable."""
    return [recording.neutral(message) for message in listener.messages[since:]]


def recorded(name: str) -> list[Any]:
    return [recording.neutral(message) for message in recording.messages(name, "A")]


def test_a_success_sends_every_message_as_recorded(comfy: Comfy) -> None:
    listener = comfy.listen()
    comfy.run(empty_to_save(), listener)
    assert heard(listener) == recorded("success_simple")


def test_history_of_a_success_has_the_recorded_shape(comfy: Comfy) -> None:
    listener = comfy.listen()
    entry = comfy.run(empty_to_save(), listener)
    want = next(e for e in recording.http_events("success_simple") if e["path"].startswith("/history"))
    (wanted,) = want["response_body"].values()
    assert list(entry) == list(wanted)
    got, want = recording.neutral(entry), recording.neutral(wanted)
    got["prompt"][0] = want["prompt"][0] = "NUMBER"
    assert got == want
    assert recording.brought(entry["prompt"][3]) == {"client_id": listener.client_id}


def test_the_saved_file_is_served(comfy: Comfy) -> None:
    entry = comfy.run(empty_to_save(color=0x102030))
    with Image.open(BytesIO(comfy.view(entry["outputs"]["2"]["images"][0]))) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
        assert image.getpixel((5, 5)) == (0x10, 0x20, 0x30)


def test_history_is_there_once_the_last_message_is(comfy: Comfy) -> None:
    listener = comfy.listen()
    for _ in range(20):
        prompt_id = comfy.submit(empty_to_save(), listener)
        listener.wait_end(prompt_id)
        assert comfy.history(prompt_id) is not None


def test_a_prompt_submitted_again_comes_from_the_cache(comfy: Comfy) -> None:
    listener = comfy.listen()
    graph = empty_to_save("rec_cached")
    first = comfy.run(graph, listener)
    again = comfy.run(graph, listener)
    assert again["outputs"] == first["outputs"]
    third = comfy.run(graph, listener)
    assert third["status"]["status_str"] == "success"
    assert heard(listener) == recorded("resubmit_cached")


def test_a_cached_output_is_named_even_when_its_file_is_gone(comfy: Comfy) -> None:
    if comfy.output_dir is None:
        pytest.skip("COMFY_OUTPUT_DIR does not tell where the server writes")
    graph = empty_to_save("rec_gone")
    (file,) = comfy.run(graph)["outputs"]["2"]["images"]
    (comfy.output_dir / file["filename"]).unlink()
    entry = comfy.run(graph)
    assert entry["status"]["status_str"] == "success"
    assert entry["outputs"]["2"]["images"] == [file]
    assert comfy.get("/view", params=file).status_code == 404


def test_cached_previews_and_texts_are_shown_again(comfy: Comfy) -> None:
    listener = comfy.listen()
    graph = {
        "1": empty(),
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        "3": {"class_type": "PrimitiveString", "inputs": {"value": f"text {listener.client_id}"}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}},
    }
    first = comfy.run(graph, listener)
    middle = len(listener.messages)
    again = comfy.run(graph, listener)
    assert again["outputs"] == first["outputs"]
    assert recording.neutral(first["outputs"]) == {
        "2": {"images": [{"filename": "ComfyUI_temp_XXXXX_N_.png", "subfolder": "", "type": "temp"}]},
        "4": {"text": ["text ID"]},
    }
    labels = listener.labels()[middle:]
    want = recording.labels("resubmit_cached_nochange_temp")[-len(labels) :]
    # Which of two outputs comes first is chance in ComfyUI.
    assert sorted(labels[:4]) == sorted(want[:4])
    assert sorted(labels) == sorted(want)
    assert labels[-3:] == want[-3:]


def test_without_a_cache_everything_runs_again(embedded: Any) -> None:
    server = embedded(args=["--cache-none"])
    comfy = Comfy(server.url)
    listener = comfy.listen()
    graph = empty_to_save("rec_nocache")
    files = [comfy.run(graph, listener)["outputs"]["2"]["images"][0]["filename"] for _ in range(2)]
    assert files == ["rec_nocache_00001_.png", "rec_nocache_00002_.png"]
    assert listener.labels() == recording.labels("resubmit_cache_none")
    comfy.close()


def test_an_input_file_is_cached_by_its_bytes(comfy: Comfy) -> None:
    listener = comfy.listen()
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": f"chg_{listener.client_id}.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "chg"}},
    }
    for colour in ("red", "red", "blue"):
        buffer = BytesIO()
        Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
        comfy.upload(f"chg_{listener.client_id}.png", buffer.getvalue())
        comfy.run(graph, listener)
    assert listener.labels() == recording.labels("input_changed_same_name")


def test_changed_inputs_of_one_node_leave_the_others_cached(comfy: Comfy) -> None:
    listener = comfy.listen()
    graph = empty_to_save()
    comfy.run(graph, listener)
    graph["2"]["inputs"]["filename_prefix"] = "other"
    comfy.run(graph, listener)
    assert "execution_cached:['1']" in listener.labels()


def test_free_memory_drops_the_cache(comfy: Comfy) -> None:
    listener = comfy.listen()
    graph = empty_to_save()
    comfy.run(graph, listener)
    assert comfy.post("/free", json={"unload_models": True}).status_code == 200
    comfy.run(graph, listener)
    assert listener.labels().count("execution_cached:['1', '2']") == 1
    assert comfy.post("/free", json={"free_memory": True}).status_code == 200
    # The thread that runs prompts looks at the flag when it wakes, or after the next prompt: one of no consequence.
    comfy.run(empty_to_save(), listener)
    seen = listener.labels().count("execution_cached:[]")
    comfy.run(graph, listener)
    assert listener.labels().count("execution_cached:[]") == seen + 1


def test_free_wants_a_body(comfy: Comfy) -> None:
    assert comfy.post("/free", json={}).status_code == 200
    assert comfy.post("/free").status_code == 500


def test_without_client_id_everyone_hears_progress_and_nothing_else(comfy: Comfy) -> None:
    listener = comfy.listen()
    comfy.run(empty_to_save())
    listener.wait_label("status:0")
    assert listener.labels() == recording.labels("success_no_client_id")


def test_a_socket_without_client_id_gets_one(comfy: Comfy) -> None:
    listener = comfy.listen_unnamed()
    status = listener.messages[0]
    assert not isinstance(status, Binary)
    listener.client_id = status["data"]["sid"]
    comfy.run(empty_to_save(), listener)
    assert listener.labels() == recording.labels("success_simple")


def test_a_batch_becomes_numbered_files(comfy: Comfy) -> None:
    graph = empty_to_save("batch", batch=4)
    animated = {"images": ["1", 0], "filename_prefix": "batch", "fps": 6.0, "lossless": True, "quality": 80}
    graph["4"] = {"class_type": "SaveAnimatedWEBP", "inputs": {**animated, "method": "default"}}
    graph["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    entry = comfy.run(graph)
    want = next(e for e in recording.http_events("batch_outputs") if e["path"].startswith("/history"))
    (wanted,) = want["response_body"].values()
    assert recording.neutral(entry["outputs"]) == recording.neutral(wanted["outputs"])
    assert entry["meta"] == wanted["meta"]
    numbers = [int(file["filename"].split("_")[1]) for file in entry["outputs"]["2"]["images"]]
    assert numbers == list(range(numbers[0], numbers[0] + 4))


def test_only_targets_run(comfy: Comfy) -> None:
    graph: Graph = empty_to_save("pt")
    graph["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    listener = comfy.listen()
    entry = comfy.run(graph, listener, partial_execution_targets=["3"])
    assert list(entry["outputs"]) == ["3"]
    assert listener.labels() == recording.labels("partial_execution_targets")
    answer = comfy.post("/prompt", json={"prompt": graph, "partial_execution_targets": ["99"]})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "prompt_no_outputs")


def test_an_image_over_the_socket_is_one_binary_message(comfy: Comfy) -> None:
    graph = {"1": empty(color=0xFF8000), "2": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}}
    listener = comfy.listen()
    entry = comfy.run(graph, listener)
    assert entry["outputs"] == {}
    want = ["executing:2", "progress_state", "progress:0/1", "BIN1", "progress_state", "execution_success"]
    assert listener.labels()[-8:-2] == want
    sent = next(message for message in listener.messages if isinstance(message, Binary))
    assert sent.payload[:4] == b"\0\0\0\x02"
    with Image.open(BytesIO(sent.payload[4:])) as image:
        assert image.getpixel((0, 0)) == (255, 128, 0)


def test_quick_steps_are_told_now_and_then(comfy: Comfy) -> None:
    """As throttled_progress: at most every 0.1 s, the first and the last always."""
    if comfy.is_real:
        pytest.skip("SetteeSampler is a node of the embedded server")
    listener = comfy.listen()
    comfy.run(sampler_graph(400, delay_ms=1), listener)
    steps = [step_of(message) for message in listener.messages if step_of(message)]
    told = [step_of(message) for message in recording.messages("throttled_progress", "A") if step_of(message)]
    assert (steps[0], steps[-1]) == (told[0], told[-1]) == (1, 400)
    assert max(len(steps), len(told)) < 200
    assert steps == sorted(steps)
