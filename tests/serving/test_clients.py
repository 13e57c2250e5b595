"""The clients that people have: curl, requests with TensorFlow Serving's documented bodies, Triton's own."""

from __future__ import annotations

import base64
import io
import json
import subprocess

import httpx
import numpy as np
import pytest
import requests
from PIL import Image

CLOSE = {"rtol": 0, "atol": 5e-6}  # batches of other sizes are summed in another order


def b64(path) -> dict[str, str]:
    return {"b64": base64.b64encode(path.read_bytes()).decode()}


def post(server, path, **body):
    return requests.post(f"{server.url}{path}", json=body, timeout=30)


# curl and files


def test_curl_with_a_file(server, files, offline):
    answer = subprocess.run(
        ["curl", "-sf", "-F", f"file=@{files[0]}", f"{server.url}/predict?model=fashion&top=3"],
        capture_output=True,
        check=True,
    )
    (prediction,) = json.loads(answer.stdout)["predictions"]
    assert (prediction["file"], prediction["label"]) == (files[0].name, offline.labels[0])
    assert len(prediction["probabilities"]) == 3
    assert prediction["probability"] == pytest.approx(float(offline.scores[0].max()), abs=5e-6)


def test_curl_with_a_body_alone(server, files, offline):
    url = f"{server.url}/predict?model=fashion"
    command = ["curl", "-sf", "--data-binary", f"@{files[1]}", "-H", "Content-Type: image/png", url]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert answer["predictions"][0]["label"] == offline.labels[1]


def test_several_files_are_answered_in_order_and_bad_ones_say_why(server, files, offline):
    parts = [("file", (path.name, path.read_bytes())) for path in files]
    parts.insert(1, ("file", ("../../etc/notes.txt", b"no image")))
    answer = requests.post(f"{server.url}/predict?model=fashion", files=parts, timeout=30).json()
    bad = answer["predictions"].pop(1)
    assert bad == {"file": "notes.txt", "error": "not an image of a known format"}
    assert [entry["label"] for entry in answer["predictions"]] == offline.labels
    scores = [[entry["probabilities"][name] for name in offline.classes] for entry in answer["predictions"]]
    np.testing.assert_allclose(scores, offline.scores, **CLOSE)
    listed = [list(entry["probabilities"].values()) for entry in answer["predictions"]]
    assert all(values == sorted(values, reverse=True) for values in listed)


def test_a_wrong_file_alone_is_an_error(server):
    answer = requests.post(f"{server.url}/predict?model=fashion", files={"file": b"GIF89a"}, timeout=30)
    assert answer.status_code == 422
    assert answer.json() == {"error": "damaged or truncated (its header cannot be read)"}


def test_embed_gives_the_features_of_the_offline_classifier(server, files, offline):
    parts = [("file", path.read_bytes()) for path in files]
    answer = requests.post(f"{server.url}/embed?model=fashion", files=parts, timeout=60).json()
    features = np.array([entry["features"] for entry in answer["embeddings"]])
    np.testing.assert_allclose(features, offline.features, rtol=0, atol=2e-5)


def test_several_models_are_told_apart_and_must_be_named(server, files):
    answer = requests.post(f"{server.url}/predict", data=files[0].read_bytes(), timeout=30)
    assert answer.status_code == 400
    assert "fashion, swapped" in answer.json()["error"]
    named = requests.post(f"{server.url}/predict?model=swapped&version=1", data=files[0].read_bytes(), timeout=30)
    assert (named.json()["model"], named.json()["version"]) == ("swapped", 1)


# TensorFlow Serving


@pytest.mark.parametrize("place", ["", "/versions/1", "/labels/stable"])
def test_v1_rows_of_base64(server, files, offline, place):
    answer = post(server, f"/v1/models/swapped{place}:predict", instances=[b64(path) for path in files])
    assert answer.status_code == 200
    rows = answer.json()["predictions"]
    assert [row["classes"] for row in rows] == [list(offline.classes)] * len(files)
    np.testing.assert_allclose([row["scores"] for row in rows], offline.scores, **CLOSE)


def test_v1_rows_and_columns_in_every_documented_form(server, files, arrays, offline):
    pixels, encoded = arrays[:2].tolist(), [b64(path) for path in files[:2]]
    rows = [
        {"instances": pixels},
        {"instances": [{"images": image} for image in pixels]},
        {"instances": [{"image_bytes": image} for image in encoded], "signature_name": "serving_bytes"},
    ]
    for body in rows:
        answer = post(server, "/v1/models/fashion:predict", **body).json()
        np.testing.assert_allclose([row["scores"] for row in answer["predictions"]], offline.scores[:2], **CLOSE)
    columns = [
        {"inputs": pixels},
        {"inputs": {"images": pixels}},
        {"inputs": encoded},
        {"inputs": {"image_bytes": encoded}, "signature_name": "serving_bytes"},
    ]
    for body in columns:
        answer = post(server, "/v1/models/fashion:predict", **body).json()["outputs"]
        np.testing.assert_allclose(answer["scores"], offline.scores[:2], **CLOSE)
        assert answer["classes"] == [list(offline.classes)] * 2


def test_v1_features_is_one_output_and_so_has_no_names(server, files, offline):
    body = {"signature_name": "features", "instances": [b64(path) for path in files]}
    answer = post(server, "/v1/models/fashion:predict", **body).json()
    np.testing.assert_allclose(answer["predictions"], offline.features, rtol=0, atol=2e-5)
    body = {"signature_name": "features", "inputs": [b64(files[0])]}
    answer = post(server, "/v1/models/fashion:predict", **body).json()
    np.testing.assert_allclose(answer["outputs"], offline.features[:1], rtol=0, atol=2e-5)


def test_v1_classify(server, files, offline):
    examples = [{"image_bytes": b64(files[0])}, {"image/encoded": [b64(files[1])]}]
    results = post(server, "/v1/models/fashion:classify", examples=examples).json()["results"]
    assert [[label for label, _ in row] for row in results] == [list(offline.classes)] * 2
    np.testing.assert_allclose([[score for _, score in row] for row in results], offline.scores[:2], **CLOSE)


def test_v1_status_and_metadata(server, offline):
    status = requests.get(f"{server.url}/v1/models/fashion", timeout=30).json()
    available = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert status == {"model_version_status": [available]}
    metadata = requests.get(f"{server.url}/v1/models/fashion/versions/1/metadata", timeout=30).json()
    assert metadata["model_spec"] == {"name": "fashion", "signature_name": "", "version": "1"}
    signatures = metadata["metadata"]["signature_def"]["signature_def"]
    taken = signatures["serving_default"]["inputs"]["images"]
    assert taken["dtype"] == "DT_FLOAT"
    assert [side["size"] for side in taken["tensor_shape"]["dim"]] == ["-1", "64", "64", "3"]
    assert signatures["serving_default"]["outputs"]["scores"]["tensor_shape"]["dim"][1]["size"] == "10"
    assert signatures["features"]["outputs"]["features"]["tensor_shape"]["dim"][1]["size"] == str(
        offline.features.shape[1]
    )


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("GET", "/v1/models/none", "", 404, "Could not find any versions of model none"),
        ("GET", "/v1/models/fashion/versions/9", "", 404, "Could not find version 9 of model fashion"),
        ("GET", "/v1/models/none/metadata", "", 404, "Servable not found for request: Latest(none)"),
        ("POST", "/v1/models/none:predict", "{}", 404, "Servable not found for request: Latest(none)"),
        ("POST", "/v1/models/fashion/versions/9:predict", "{}", 404, "request: Specific(fashion, 9)"),
        ("POST", "/v1/models/fashion/labels/x:predict", "{}", 404, "Label(fashion, x)"),
        ("POST", "/v1/models/fashion:predict", "", 400, "JSON Parse error"),
        ("POST", "/v1/models/fashion:predict", "[1]", 400, "must be a JSON object"),
        ("POST", "/v1/models/fashion:predict", "{}", 400, "Missing 'inputs' or 'instances' key"),
        ("POST", "/v1/models/fashion:predict", '{"instances": 1, "inputs": 1}', 400, "only one of"),
        ("POST", "/v1/models/fashion:predict", '{"instances": []}', 400, "'instances' value is an empty array"),
        ("POST", "/v1/models/fashion:predict", '{"instances": [[[1, 2], [3]]]}', 400, "nested lists of numbers"),
        ("POST", "/v1/models/fashion:predict", '{"instances": [[[1, 2], [3, 4]]]}', 400, "(height, width, 3)"),
        ("POST", "/v1/models/fashion:predict", '{"instances": [[[[NaN, 1, 1]]]]}', 400, "finite"),
        ("POST", "/v1/models/fashion:predict", '{"instances": [[[[1e99, 1, 1]]]]}', 400, "finite"),
        ("POST", "/v1/models/fashion:predict", '{"instances": [{"b64": "?"}]}', 400, "image 0 must be base64"),
        ("POST", "/v1/models/fashion:predict", '{"instances": [{"b64": "aGk="}]}', 400, "image 0: not an image"),
        ("POST", "/v1/models/fashion:predict", '{"instances": [{"x": [[[1]]]}]}', 400, "alias not found"),
        ("POST", "/v1/models/fashion:predict", '{"instances": [1], "signature_name": "x"}', 400, '"x" not found'),
        ("POST", "/v1/models/fashion:classify", "{}", 400, "key 'examples' is expected"),
        ("POST", "/v1/models/fashion:classify", '{"examples": []}', 400, "is an empty array"),
        ("POST", "/v1/models/fashion:regress", '{"examples": [{}]}', 400, "Expected regression signature"),
        ("GET", "/v1/models", "", 400, "Malformed request: GET /v1/models"),
        ("POST", "/v1/models/fashion:explain", "{}", 400, "Malformed request: POST"),
        ("GET", "/v1/models/fashion/versions/99999999999999999999", "", 400, "Failed to convert version"),
    ],
)
def test_v1_errors(server, method, path, body, status, error):
    answer = requests.request(method, f"{server.url}{path}", data=body, timeout=30)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert error in answer.json()["error"]


# Open Inference Protocol


@pytest.fixture(scope="module")
def triton(server):
    client = pytest.importorskip("tritonclient.http")
    with client.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=60) as connection:
        yield client, connection


def test_v2_health_and_metadata_by_tritons_client(triton):
    _, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fashion")
    assert client.is_model_ready("fashion", "1")
    assert not client.is_model_ready("none")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("fashion")
    assert metadata["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 64, 64, 3]}]
    assert {"name": "scores", "datatype": "FP32", "shape": [-1, 10]} in metadata["outputs"]


@pytest.mark.parametrize(("kind", "datatype"), [(np.uint8, "UINT8"), (np.float32, "FP32"), (np.int64, "INT64")])
@pytest.mark.parametrize("binary", [True, False])
def test_v2_numbers_by_tritons_client(triton, arrays, offline, kind, datatype, binary):
    http, client = triton
    some = arrays[:3].astype(kind)
    given = http.InferInput("images", some.shape, datatype)
    given.set_data_from_numpy(some, binary_data=binary)
    outputs = [http.InferRequestedOutput(name, binary_data=binary) for name in ("scores", "label", "features")]
    result = client.infer("fashion", [given], outputs=outputs, request_id="some id")
    np.testing.assert_allclose(result.as_numpy("scores"), offline.scores[:3], **CLOSE)
    np.testing.assert_allclose(result.as_numpy("features"), offline.features[:3], rtol=0, atol=2e-5)
    labels = [label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("label")]
    assert labels == offline.labels[:3]
    assert result.get_response()["id"] == "some id"


def test_v2_files_by_tritons_client_with_all_outputs(triton, files, offline):
    http, client = triton
    given = http.InferInput("images", [len(files)], "BYTES")
    given.set_data_from_numpy(np.array([path.read_bytes() for path in files], object), binary_data=True)
    result = client.infer("fashion", [given], model_version="1")
    np.testing.assert_allclose(result.as_numpy("scores"), offline.scores, **CLOSE)
    assert [label.decode() for label in result.as_numpy("label")] == offline.labels


@pytest.mark.parametrize("packed", ["gzip", "deflate"])
def test_v2_packed_requests_by_tritons_client(triton, arrays, offline, packed):
    http, client = triton
    given = http.InferInput("images", arrays[:2].shape, "UINT8")
    given.set_data_from_numpy(arrays[:2], binary_data=True)
    result = client.infer("fashion", [given], request_compression_algorithm=packed)
    np.testing.assert_allclose(result.as_numpy("scores"), offline.scores[:2], **CLOSE)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("count", [3, 99])
def test_v2_classification_by_tritons_client(triton, arrays, offline, binary, count):
    http, client = triton
    given = http.InferInput("images", arrays[:2].shape, "UINT8")
    given.set_data_from_numpy(arrays[:2])
    outputs = [http.InferRequestedOutput("scores", binary_data=binary, class_count=count)]
    found = client.infer("fashion", [given], outputs=outputs).as_numpy("scores")
    best = np.argsort(-offline.scores[:2], axis=1)[:, :count]
    assert found.shape == best.shape
    for row, order, scores in zip(found, best, offline.scores, strict=False):
        texts = [text.decode() if isinstance(text, bytes) else text for text in row]
        parts = [text.split(":") for text in texts]
        assert [int(index) for _, index, _ in parts[:3]] == order[:3].tolist()
        assert [label for _, _, label in parts[:3]] == [offline.classes[index] for index in order[:3]]
        np.testing.assert_allclose([float(value) for value, _, _ in parts[:3]], scores[order[:3]], rtol=0, atol=6e-6)


def test_v2_classification_of_other_outputs(server, offline):
    def ask(name, count):
        body = {"inputs": [image_input()], "outputs": [{"name": name, "parameters": {"classification": count}}]}
        return post(server, "/v2/models/fashion/infer", **body)

    (output,) = ask("features", 2).json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 2])
    assert [text.count(":") for text in output["data"]] == [1, 1]
    for name, count in (("label", 1), ("scores", -1), ("scores", True), ("scores", "2")):
        answer = ask(name, count)
        assert answer.status_code == 400
        assert "'classification'" in answer.json()["error"]


@pytest.mark.parametrize("version", ["", "1"])
def test_v2_configuration_by_tritons_client(triton, version, offline):
    _, client = triton
    assert {"classification", "model_configuration"} <= set(client.get_server_metadata()["extensions"])
    config = client.get_model_config("fashion", version)
    assert (config["name"], config["max_batch_size"]) == ("fashion", 64)
    assert [(one["name"], one["data_type"], one["dims"]) for one in config["input"]] == [
        ("images", "TYPE_FP32", [64, 64, 3])
    ]
    assert [(one["name"], one["data_type"], one["dims"]) for one in config["output"]] == [
        ("scores", "TYPE_FP32", [10]),
        ("label", "TYPE_STRING", [1]),
        ("features", "TYPE_FP32", [offline.features.shape[1]]),
    ]


def test_v2_base64_in_json(server, files, offline):
    data = [b64(path)["b64"] for path in files[:2]]
    given = {"name": "images", "shape": [2], "datatype": "BYTES", "data": data}
    outputs = post(server, "/v2/models/fashion/infer", inputs=[given]).json()["outputs"]
    assert [output["name"] for output in outputs] == ["scores", "label"]
    assert outputs[1]["data"] == offline.labels[:2]
    np.testing.assert_allclose(np.reshape(outputs[0]["data"], (2, 10)), offline.scores[:2], **CLOSE)


def test_v2_errors_are_what_tritons_client_expects(triton, arrays):
    http, client = triton
    given = http.InferInput("images", arrays[:1].shape, "UINT8")
    given.set_data_from_numpy(arrays[:1])
    with pytest.raises(http.InferenceServerException, match="unknown model: 'none'") as caught:
        client.infer("none", [given])
    assert caught.value.status() == "404"
    with pytest.raises(http.InferenceServerException, match="outputs are scores, label, features"):
        client.infer("fashion", [given], outputs=[http.InferRequestedOutput("logits")])


def image_input(**more):
    return {"name": "images", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [1, 2, 3], **more}


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (image_input(shape=[1, 2, 2, 3]), "says 12 elements. Received: 3"),
        (image_input(shape=[1, 1, 3]), "(n, height, width, 3)"),
        (image_input(shape=[1, 1, 1, -3]), "at least 0"),
        (image_input(shape=[True, 1, 1, 3]), "whole numbers"),
        (image_input(data=[1, 2, 300]), "UINT8 can hold"),
        (image_input(data=["a", "b", "c"]), "list of numbers"),
        (image_input(data=None), "'data', a list"),
        (image_input(datatype="BOOL"), "datatype must be"),
        (image_input(name="image"), "one input, 'images'"),
        (image_input(parameters={"binary_data_size": 3}), "not both"),
        (image_input(parameters=[]), "must be an object"),
        ({"name": "images", "shape": [1], "datatype": "BYTES", "data": [1]}, "must be strings"),
        ({"name": "images", "shape": [2], "datatype": "BYTES", "data": ["aGk="]}, "says 2 elements. Received: 1"),
        ({"name": "images", "shape": [0], "datatype": "BYTES", "data": []}, "at least one image"),
    ],
)
def test_v2_malformed_inputs(server, given, error):
    answer = post(server, "/v2/models/fashion/infer", inputs=[given])
    assert answer.status_code == 400
    assert error in answer.json()["error"]


@pytest.mark.parametrize(
    ("length", "tail", "parameters"),
    [
        (None, b"abc", {"binary_data_size": 3}),
        ("x", b"abc", {"binary_data_size": 3}),
        ("999999", b"abc", {"binary_data_size": 3}),
        ("-1", b"abc", {"binary_data_size": 3}),
        ("right", b"abcd", {"binary_data_size": 3}),
        ("right", b"abc", {"binary_data_size": 4}),
        ("right", b"abc", {"binary_data_size": -3}),
        ("right", b"abc", {}),
    ],
)
def test_v2_binary_data_of_the_wrong_length(server, length, tail, parameters):
    given = {key: value for key, value in image_input(parameters=parameters).items() if key != "data"}
    head = json.dumps({"inputs": [given]}).encode()
    headers = {} if length is None else {"Inference-Header-Content-Length": length.replace("right", str(len(head)))}
    answer = httpx.post(f"{server.url}/v2/models/fashion/infer", content=head + tail, headers=headers)
    assert answer.status_code == 400


@pytest.mark.parametrize("data", [b"\1", b"\5\0\0\0abcd", b"\xff\xff\xff\xff" * 2])
def test_v2_bytes_whose_lengths_lie(server, data):
    parameters = {"binary_data_size": len(data)}
    given = {"name": "images", "shape": [1], "datatype": "BYTES", "parameters": parameters}
    head = json.dumps({"inputs": [given]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = httpx.post(f"{server.url}/v2/models/fashion/infer", content=head + data, headers=headers)
    assert answer.status_code == 400


# what all three have in common


def test_arrays_of_another_size_are_resized_as_offline(server, classifier):
    from resfit.tasks.classification import Classifier

    image = np.random.default_rng(3).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    expected = Classifier.load(classifier).predict_proba([image], engine="openvino")[0]
    answer = post(server, "/v1/models/fashion:predict", instances=[image.tolist()]).json()
    np.testing.assert_allclose(answer["predictions"][0]["scores"], expected, **CLOSE)


def test_a_large_turned_jpeg_is_decoded_as_offline(server, classifier, tmp_path):
    from resfit.tasks.classification import Classifier

    wide = np.random.default_rng(4).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(wide).resize((1600, 1200)).save(path, exif=exif)
    expected = Classifier.load(classifier).predict_proba(path, engine="openvino")[0]
    answer = post(server, "/v1/models/fashion:predict", instances=[b64(path)]).json()
    np.testing.assert_allclose(answer["predictions"][0]["scores"], expected, **CLOSE)


def test_explain_gives_the_overlay_of_the_offline_classifier(server, classifier, files, offline):
    from resfit.tasks.classification import Classifier

    (expected,) = Classifier.load(classifier).explain(files[0], method="grad-cam++")
    url = f"{server.url}/explain?model=fashion&method=grad-cam%2B%2B"
    answer = requests.post(url, data=files[0].read_bytes(), timeout=60)
    assert answer.headers["content-type"] == "image/png"
    overlay = np.asarray(Image.open(io.BytesIO(answer.content)), int)
    assert np.abs(overlay - expected.overlay).max() <= 1
    parts = requests.post(f"{url}&format=json", data=files[0].read_bytes(), timeout=60).json()
    assert parts["label"] == offline.labels[0]
    assert parts["heat"].startswith("data:image/png;base64,")


def test_the_nearest_training_images(server, files, classifier):
    from resfit.tasks.classification import Classifier

    loaded = Classifier.load(classifier)
    features = loaded.embed(files[:1], engine="openvino", cache=False).features
    positions, cosines = loaded.references.nearest(features, 5)
    answer = requests.post(f"{server.url}/nearest?model=fashion", data=files[0].read_bytes(), timeout=60).json()
    labels = [loaded.classes[loaded.references.labels[position]] for position in positions[0]]
    assert [one["label"] for one in answer["nearest"]] == labels
    np.testing.assert_allclose([one["similarity"] for one in answer["nearest"]], cosines[0], rtol=0, atol=1e-4)
    assert all(one["thumbnail"].startswith("data:image/jpeg;base64,") for one in answer["nearest"])


def test_what_is_unlike_the_training_images_is_said(server, classifier, files):
    from resfit.tasks.classification import Classifier

    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    expected = Classifier.load(classifier).predict([noise], engine="openvino")
    answer = requests.post(f"{server.url}/predict?model=fashion", files={"file": file.getvalue()}, timeout=60).json()
    assert answer["calibrated"]
    assert answer["predictions"][0]["unlike_training"] == expected[0].unlike_training


def test_openapi_lists_every_route_that_clients_use(server):
    paths = requests.get(f"{server.url}/openapi.json", timeout=30).json()["paths"]
    for path in ("/predict", "/explain", "/embed", "/v1/models/{model}:predict", "/v2/models/{model}/infer"):
        assert list(paths[path]) == ["post"]
