"""Keys, paths, metadata and addresses: made of untrusted text, and safe whatever it is."""

from __future__ import annotations

import time
from pathlib import PurePosixPath
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settee.base.errors import ConfigError, InvalidRequest
from settee.base.job import Artifact, Kind
from settee.delivery import check_request, target_for
from settee.delivery.keys import Namer, prefix_problem, safe_id, safe_segment
from settee.s3.client import forget, url_for
from settee.s3.objects import METADATA_BYTES, encode_metadata
from settee.s3.target import endpoint_problem, plain_endpoint, region_of
from tests.support.delivering import make_job, make_settings

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=300)
BUCKET = {
    "bucket_endpoint_url": "https://s3.example.com",
    "bucket_access_key_id": "worker-key",
    "bucket_secret_access_key": "worker-secret",
}
CALLERS = {
    "accessId": "caller-key",
    "accessSecret": "caller-secret",
    "bucketName": "theirs",
    "endpointUrl": "https://s3.example.org",
}


def artifact(filename: str = "a.png", *, subfolder: str = "", node_id: str = "9") -> Artifact:
    return Artifact(
        node_id=node_id, kind=Kind.IMAGE, filename=filename, subfolder=subfolder, media_type="image/png", size=1
    )


@given(ANY_TEXT)
def test_a_segment_is_always_safe(text: str) -> None:
    segment = safe_segment(text)
    assert segment
    assert "/" not in segment
    assert not segment.startswith(".")
    assert segment == segment.strip()
    assert len(segment.encode()) <= 200
    assert segment.isprintable()
    assert safe_segment(segment) == segment


@pytest.mark.parametrize("name", ["ComfyUI_00001_.png", "Bild 1 (neu).png", "生成画像.png", "a+b=c@d,[e].webp"])
def test_ordinary_names_stay_as_they_are(name: str) -> None:
    assert safe_segment(name) == name


def test_a_long_name_keeps_its_suffix() -> None:
    assert safe_segment("é" * 250 + ".png").endswith("é.png")


@given(ANY_TEXT, ANY_TEXT)
def test_different_ids_never_meet(one: str, other: str) -> None:
    assert (safe_id(one) == safe_id(other)) == (one == other)


@given(ANY_TEXT, st.lists(st.tuples(ANY_TEXT, ANY_TEXT, ANY_TEXT), max_size=6))
def test_keys_stay_in_the_jobs_folder_and_never_repeat(job_id: str, files: list[tuple[str, str, str]]) -> None:
    namer = Namer("out/{date}", make_job(id=job_id))
    keys = [namer.key(artifact(name, subfolder=sub, node_id=node), name) for name, sub, node in files]
    assert len({key.casefold() for key in keys}) == len(keys)
    for key in keys:
        parts = key.split("/")
        assert parts[0] == "out"
        assert parts[2] == safe_id(job_id)
        assert not {"", ".", ".."} & set(parts)
        assert len(key.encode()) < 1024


def test_the_default_key_is_the_jobs_id_and_the_name() -> None:
    assert Namer("{job_id}", make_job(id="sync-1-u1")).key(artifact(), "a.png") == "sync-1-u1/a.png"


def test_one_name_three_times_in_one_job() -> None:
    namer = Namer("{job_id}", make_job(id="j"))
    keys = [
        namer.key(artifact("a.png"), "a.png"),
        namer.key(artifact("a.png", subfolder="x/y"), "a.png"),
        namer.key(artifact("A.png", node_id="57:8"), "A.png"),
        namer.key(artifact("a.png", node_id="57:8"), "a.png"),
        namer.key(artifact("a.png"), "a.png"),
        namer.key(artifact("a.png"), "a.png"),
    ]
    assert keys[:2] == ["j/a.png", "j/x/y/a.png"]
    assert PurePosixPath(keys[2]).name == "A.png"
    assert keys[3] == "j/a-2.png"
    assert len({key.casefold() for key in keys}) == 6


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("third", [artifact("y.png", subfolder="x"), artifact("y.png", node_id="x")])
def test_no_file_has_the_name_of_a_folder_that_another_needs(third: Artifact, turned: bool) -> None:
    """On the volume such a job failed, though all of its files were there."""
    files = [artifact("x"), artifact("y.png"), third]
    namer = Namer("{job_id}", make_job(id="j"))
    keys = {namer.key(one, one.filename) for one in (reversed(files) if turned else files)}
    assert len(keys) == 3
    assert not keys & {str(parent) for key in keys for parent in PurePosixPath(key).parents}


def test_one_name_in_two_unicode_spellings_is_two_files() -> None:
    namer = Namer("{job_id}", make_job(id="j"))
    assert [namer.key(artifact(), name) for name in ("\u00e9.png", "e\u0301.png")] == ["j/\u00e9.png", "j/9/\u00e9.png"]


def test_every_field_of_a_template() -> None:
    job = make_job(id="j", created_at=1_700_000_000.0)
    key = Namer("p/{date}/{time}/{kind}-{node_id}/{job_id}", job).key(artifact(node_id="4"), "a.png")
    assert key == "p/2023-11-14/22-13-20/images-4/j/a.png"


def test_a_template_without_the_job_gets_it_because_comfyui_counts_from_one_in_every_job() -> None:
    keys = {Namer("portraits", make_job(id=id)).key(artifact(), "a.png") for id in ("one", "two")}
    assert keys == {"portraits/one/a.png", "portraits/two/a.png"}


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{jobid}", "unknown field {jobid}"),
        ("{job_id.__class__}", "unknown field"),
        ("{job_id[0]}", "unknown field"),
        ("{}", "unknown field"),
        ("{0}", "unknown field"),
        ("{job_id!r}", "unknown field"),
        ("{date:%Y}", "unknown field"),
        ("{job_id", "not a template"),
        ("a}b", "not a template"),
        ("../{job_id}", "not allowed as folders"),
        ("a/../../b", "not allowed as folders"),
        ("./a", "not allowed as folders"),
        ("a\nb", "control characters"),
        ("x" * 501, "too long"),
        ("{job_id}" * 9, "too long"),
    ],
)
def test_a_bad_template_is_refused_before_anything_runs(template: str, says: str) -> None:
    assert says in (prefix_problem(template) or "")
    with pytest.raises(InvalidRequest) as error:
        check_request(make_job({"mode": "auto", "prefix": template}).request, make_settings())
    assert error.value.details["problems"][0]["path"] == "delivery.prefix"
    with pytest.raises(ConfigError, match="BUCKET_PREFIX"):
        check_request(make_job().request, make_settings(**BUCKET, bucket_prefix=template))


@pytest.mark.parametrize(
    "template", ["{job_id}", "a/b/{kind}/{date}", "{{literal}}/{job_id}", "/leading//double/", "x"]
)
def test_good_templates(template: str) -> None:
    assert prefix_problem(template) is None
    key = Namer(template, make_job(id="j")).key(artifact(), "a.png")
    assert not {"", ".", ".."} & set(key.split("/"))


def test_s3_without_a_bucket_says_what_to_set() -> None:
    with pytest.raises(InvalidRequest, match="BUCKET_ENDPOINT_URL"):
        check_request(make_job("s3").request, make_settings())
    check_request(make_job("s3").request, make_settings(**BUCKET))
    check_request(make_job("auto").request, make_settings())


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9000",
        "http://localhost",
        "http://169.254.169.254/latest",
        "http://10.1.2.3",
        "http://[::1]:80",
        "http://[::ffff:10.0.0.1]",
        "http://100.64.0.1",
        "http://0.0.0.0",
        "http://2130706433",
    ],
)
def test_a_callers_endpoint_must_be_on_the_public_internet(url: str) -> None:
    request = make_job(bucket={**CALLERS, "endpointUrl": url}).request
    with pytest.raises(InvalidRequest, match="public Internet") as error:
        check_request(request, make_settings())
    assert "caller-secret" not in str([error.value.message, error.value.details])
    check_request(request, make_settings(allow_private_s3config=True))


@pytest.mark.parametrize("url", ["http://8.8.8.8", "https://[2606:4700:4700::1111]:443"])
def test_public_addresses_are_fine(url: str) -> None:
    assert endpoint_problem(url) is None


def test_a_bucket_that_no_bucket_can_be_is_found_before_anything_runs() -> None:
    request = make_job(bucket={**CALLERS, "bucketName": "a/b c"}).request
    with pytest.raises(InvalidRequest, match="bucketName"):
        check_request(request, make_settings(allow_private_s3config=True))
    with pytest.raises(ConfigError, match="BUCKET_NAME"):
        check_request(make_job().request, make_settings(**BUCKET, bucket_name="a/b c"))


def test_the_callers_bucket_goes_first_and_keeps_the_workers_settings_out() -> None:
    settings = make_settings(**BUCKET, bucket_prefix="internal/{job_id}", bucket_public_url="https://cdn.example.com")
    target = target_for(make_job(bucket=CALLERS), settings)
    assert target is not None
    assert (target.endpoint_url, target.bucket, target.access_key) == ("https://s3.example.org", "theirs", "caller-key")
    assert (target.prefix, target.public_url, target.own) == ("{job_id}", None, False)
    assert "secret" not in repr(target)


def test_the_defaults_are_those_of_runpods_uploader() -> None:
    target = target_for(make_job(), make_settings(**BUCKET))
    assert target is not None
    month, _, year = target.bucket.partition("-")
    assert len(month) == len(year) == 2
    assert target.by_month
    assert target.expires_s == 7 * 24 * 3600
    assert target.prefix == "{job_id}"
    assert target_for(make_job(), make_settings()) is None


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://s3.eu-central-1.amazonaws.com", "eu-central-1"),
        ("https://bucket.s3.us-west-2.amazonaws.com", "us-west-2"),
        ("https://bucket.s3-eu-west-1.amazonaws.com", "eu-west-1"),
        ("https://s3.dualstack.ap-south-1.amazonaws.com", "ap-south-1"),
        ("https://s3.amazonaws.com", "us-east-1"),
        ("https://bucket.s3.amazonaws.com", "us-east-1"),
        ("https://s3.us-west-002.backblazeb2.com", "us-west-002"),
        ("https://nyc3.digitaloceanspaces.com", "nyc3"),
        ("https://space.fra1.digitaloceanspaces.com", "fra1"),
        ("https://s3.eu-central-003.wasabisys.com", "eu-central-003"),
        ("https://0123.r2.cloudflarestorage.com", "auto"),
        ("http://127.0.0.1:9000", "us-east-1"),
        ("http://minio:9000", "us-east-1"),
        ("https://s3.example.com", "us-east-1"),
        ("https://s3.my-company.com", "us-east-1"),
        ("https://s3.fr-par.scw.cloud", "fr-par"),
        ("https://s3api-eu-ro-1.runpod.io", "EU-RO-1"),
    ],
)
def test_regions_named_by_endpoints(url: str, region: str) -> None:
    assert region_of(url) == region


@pytest.mark.parametrize(
    ("changes", "start", "region"),
    [
        # What that worker's guide tells its users to set: the month is a folder in the bucket that the host names.
        (
            {"bucket_endpoint_url": "https://pics.s3.eu-central-1.amazonaws.com"},
            "https://pics.s3.eu-central-1.amazonaws.com/{month}/job-1/a.png?",
            "eu-central-1",
        ),
        (
            {"bucket_endpoint_url": "https://pics.s3.eu-central-1.amazonaws.com", "bucket_name": "pics"},
            "https://s3.eu-central-1.amazonaws.com/pics/job-1/a.png?",
            "eu-central-1",
        ),
        (
            {"bucket_endpoint_url": "https://s3.example.com", "bucket_name": "pics", "bucket_path_style": False},
            "https://pics.s3.example.com/job-1/a.png?",
            "us-east-1",
        ),
        (
            {"bucket_endpoint_url": "http://minio:9000", "bucket_name": "pics", "bucket_region": "here"},
            "http://minio:9000/pics/job-1/a.png?",
            "here",
        ),
    ],
)
def test_the_addresses_that_endpoints_make(changes: dict[str, object], start: str, region: str) -> None:
    target = target_for(make_job(), make_settings(**{**BUCKET, **changes}))
    assert target is not None
    url = url_for(target, "job-1/a.png")
    assert url.startswith(start.format(month=time.strftime("%m-%y")))
    assert f"worker-key%2F{time.strftime('%Y%m%d', time.gmtime())}%2F{region}%2Fs3%2Faws4_request" in url
    forget(target)


@pytest.mark.parametrize(
    ("url", "bucket", "plain"),
    [
        ("https://pics.s3.us-east-1.amazonaws.com/", "pics", "https://s3.us-east-1.amazonaws.com"),
        ("https://pics.s3.us-east-1.amazonaws.com", None, "https://pics.s3.us-east-1.amazonaws.com"),
        ("https://pics.s3.us-east-1.amazonaws.com", "other", "https://pics.s3.us-east-1.amazonaws.com"),
        ("http://minio:9000", "minio", "http://minio:9000"),
    ],
)
def test_an_endpoint_that_names_its_bucket_is_not_addressed_twice(url: str, bucket: str | None, plain: str) -> None:
    assert plain_endpoint(url, bucket) == plain


@given(st.dictionaries(st.sampled_from(["job", "node", "filename", "prompt"]), ANY_TEXT))
def test_metadata_is_ascii_within_limits_and_comes_back(values: dict[str, str]) -> None:
    encoded = encode_metadata(values)
    assert sum(len(name) + len(value) for name, value in encoded.items()) <= METADATA_BYTES
    for name, value in encoded.items():
        assert value.isascii()
        assert value.isprintable()
        assert value == value.strip()
        original = values[name].encode("utf-8", "replace").decode()
        assert unquote(value) == original or (value.endswith("...") and original.startswith(unquote(value[:-3])))


def test_metadata_that_is_too_long_is_cut_visibly_and_the_short_values_stay_whole() -> None:
    encoded = encode_metadata({"prompt": "猫" * 5000, "node": "57:8", "seed": "12"})
    assert encoded["node"] == "57:8"
    assert encoded["seed"] == "12"
    assert encoded["prompt"].endswith("...")
    assert unquote(encoded["prompt"][:-3]) == "猫" * (len(encoded["prompt"]) // 9)
    assert len(encoded["prompt"]) > 1900
