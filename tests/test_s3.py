"""The operator's requests to S3, and stores that forbid them, ignore them or answer wrongly."""

from __future__ import annotations

import json
import logging
import re
from urllib.parse import unquote

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_stem.errors import StemTransportError
from airflow_provider_stem.operators import StemStreamsToS3Operator
from tests.faults.proxy import FaultyProxy, altered, answer
from tests.support import expected_rows, landed_rows, run_context

pytestmark = pytest.mark.s3

DAY = ("2025-07-01T00:00Z", "2025-07-02T00:00Z")
SITES = ["site-00001", "site-00002"]
DENIED = answer(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")


class Store(FaultyProxy):
    """SeaweedFS behind a proxy that records the requests' header fields, and can ignore conditions."""

    def __init__(self, url, client):
        super().__init__(url)
        self.client = client
        self.ignores = ()
        self.heads = []

    def _answer_from_behind(self, head, body):
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in lines if ": " in line)
        fields = {name.lower(): value for name, value in pairs}
        self.heads.append(fields)
        answered = super()._answer_from_behind(head, body)
        if answered.startswith(b"HTTP/1.1 412") and set(self.ignores) & fields.keys():
            return self.put(first.split()[1], body, fields)
        return answered

    def put(self, target, body, fields):
        """Store a body unconditionally, like a store without conditional writes."""
        bucket, _, key = target.partition("?")[0].removeprefix("/").partition("/")
        metadata = {
            name.removeprefix("x-amz-meta-"): value for name, value in fields.items() if name.startswith("x-amz-meta-")
        }
        etag = self.client.put_object(Bucket=bucket, Key=unquote(key), Body=body, Metadata=metadata)["ETag"]
        return f"HTTP/1.1 200 OK\r\nETag: {etag}\r\nContent-Length: 0\r\n\r\n".encode()


@pytest.fixture
def store(lake, s3_server, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # between botocore's attempts
    with Store(s3_server.url, lake.client) as proxy:
        connection = json.loads(s3_server.connection)
        connection["extra"]["endpoint_url"] = proxy.url
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
        yield proxy


def land(lake, day=DAY, **arguments):
    arguments = {"sites": SITES, "s3_key": "x/{start}_{batch}.{extension}", **arguments}
    return StemStreamsToS3Operator(task_id="land", s3_bucket=lake.bucket, **arguments).execute(run_context(*day))


def writes(store):
    return [target for target in store.targets if target.startswith("PUT") and ".stem-probe" not in target]


# --- conditions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("if_exists", ["merge", "fail"])
@pytest.mark.parametrize("ignored", [("If-None-Match",), ("If-Match",), ("If-None-Match", "If-Match")])
def test_a_store_that_ignores_conditions_is_an_error_before_any_request_to_the_api(
    if_exists, ignored, store, stem, lake
):
    store.ignores = tuple(name.lower() for name in ignored)
    with pytest.raises(AirflowFailException, match=rf"does not honour {ignored[0]}.*allow_unconditional_writes"):
        land(lake, if_exists=if_exists)
    assert stem.requests == []
    assert lake.objects() == {}


@pytest.mark.parametrize("how", ["replace", "configuration"])
def test_such_a_store_can_be_allowed(how, store, stem, lake, monkeypatch, caplog):
    store.ignores = ("if-none-match", "if-match")
    arguments = {"if_exists": "replace"} if how == "replace" else {}
    if how == "configuration":
        monkeypatch.setenv("AIRFLOW__STEM__ALLOW_UNCONDITIONAL_WRITES", "True")
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        land(lake, **arguments)
    assert "does not honour If-None-Match" in caplog.text
    assert landed_rows(lake.table()) == expected_rows(stem, SITES, ["MONITOR"], 900, *DAY)


@pytest.mark.parametrize("status", [400, 405, 501])
def test_a_store_that_rejects_conditions_counts_as_one_that_ignores_them(status, store, stem, lake, monkeypatch):
    original = store._answer_from_behind

    def without_conditions(head, body):
        if head.startswith(b"PUT") and re.search(rb"\r\nIf-(None-)?Match: ", head, re.IGNORECASE):
            return f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode()
        return original(head, body)

    store._answer_from_behind = without_conditions
    with pytest.raises(AirflowFailException, match="does not honour If-None-Match"):
        land(lake)
    assert stem.requests == []
    monkeypatch.setenv("AIRFLOW__STEM__ALLOW_UNCONDITIONAL_WRITES", "True")
    for _ in range(2):
        land(lake)
    assert landed_rows(lake.table()) == expected_rows(stem, SITES, ["MONITOR"], 900, *DAY)
    assert len(lake.objects()) == 1


@pytest.mark.parametrize("status", [409, 412])
def test_a_conflict_is_resolved_by_reading_the_object_again(status, store, stem, lake):
    land(lake)
    store.go_wrong(
        answer(status, b"<Error><Code>ConditionalRequestConflict</Code></Error>"),
        lambda exchange: exchange.method == "PUT" and len(writes(store)) == 1 and ".stem-probe" not in exchange.target,
    )
    receipt = land(lake)
    assert (receipt["unchanged"], len(writes(store))) == (192, 2)


@pytest.mark.parametrize("if_exists", ["merge", "replace", "fail"])
def test_a_conflict_on_a_new_object_is_resolved_by_reading_it(if_exists, store, stem, lake):
    store.go_wrong(
        answer(409, b"<Error><Code>ConditionalRequestConflict</Code></Error>"),
        lambda exchange: exchange.method == "PUT" and len(writes(store)) == 1 and ".stem-probe" not in exchange.target,
    )
    assert land(lake, if_exists=if_exists)["inserted"] == 192
    assert landed_rows(lake.table()) == expected_rows(stem, SITES, ["MONITOR"], 900, *DAY)


def test_the_probe_is_deleted(store, stem, lake):
    land(lake)
    assert list(lake.objects()) == ["x/20250701T000000Z_all.parquet"]


def test_a_probe_that_cannot_be_deleted_is_not_an_error(store, stem, lake):
    store.go_wrong(DENIED, lambda exchange: exchange.method == "DELETE")
    for _ in range(3):
        land(lake)
    [probe, _] = sorted(lake.objects())
    assert re.fullmatch(r"x/\.stem-probe-[0-9a-f]{8}", probe)


# --- what a bucket requires -------------------------------------------------------------------------------------------


def test_extra_arguments_are_sent_with_each_put(store, stem, lake):
    receipt = land(
        lake, s3_extra_args={"StorageClass": "STANDARD_IA", "Metadata": {"team": "energy"}, "ACL": "private"}
    )
    puts = [head for head in store.heads if "x-amz-storage-class" in head]
    assert len(puts) == 4  # three are of the probe
    assert {head["x-amz-acl"] for head in puts} == {"private"}
    metadata = lake.client.head_object(Bucket=lake.bucket, Key="x/20250701T000000Z_all.parquet")["Metadata"]
    assert metadata["team"] == "energy"
    assert metadata["sha256"] == receipt["objects"][0]["sha256"]
    assert metadata["read-at"] == receipt["objects"][0]["read_at"]


def test_a_customer_provided_key_is_sent_with_reads_too(store, stem, lake):
    key = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "0" * 32}
    land(lake, s3_extra_args=key)
    store.heads.clear()
    assert land(lake, s3_extra_args=key)["unchanged"] == 192
    encrypted = [head for head in store.heads if "x-amz-server-side-encryption-customer-key" in head]
    assert len(encrypted) == 6  # three of the probe, HEAD, GET, PUT


def test_a_bucket_that_requires_encryption_is_reported_before_any_request_to_the_api(store, stem, lake):
    demands = "x-amz-server-side-encryption"
    original = store._answer_from_behind

    def demanding(head, body):
        if head.startswith(b"PUT") and demands.encode() not in head.lower():
            return b"HTTP/1.1 403 X\r\nContent-Length: 44\r\n\r\n<Error><Code>AccessDenied</Code></Error>    "
        return original(head.replace(b"x-amz-server-side-encryption: AES256\r\n", b""), body)

    store._answer_from_behind = demanding
    with pytest.raises(AirflowFailException, match=r"^Access denied. Check the permissions.*s3_extra_args"):
        land(lake)
    assert stem.requests == []
    assert len([target for target in store.targets if target.startswith("PUT")]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"Colour": "red"}, "s3_extra_args is invalid. Correct it: .*Colour"),
        ({"StorageClass": 7}, "s3_extra_args is invalid. Correct it: .*StorageClass"),
    ],
)
def test_arguments_that_boto3_rejects_are_named_before_any_request_to_the_api(arguments, message, store, stem, lake):
    with pytest.raises(AirflowFailException, match=message):
        land(lake, s3_extra_args=arguments)
    assert stem.requests == []


def test_arguments_that_s3_rejects_fail_without_retries(store, stem, lake):
    store.go_wrong(
        answer(400, b"<Error><Code>KMS.NotFoundException</Code><Message>no such key</Message></Error>"),
        lambda exchange: exchange.method == "PUT",
    )
    with pytest.raises(AirflowFailException, match="Check s3_extra_args.*no such key"):
        land(lake)
    assert stem.requests == []


@pytest.mark.parametrize("status", [500, 501])
def test_a_store_that_fails_on_extra_arguments_is_retried_and_names_them(status, store, stem, lake):
    store.go_wrong(
        answer(status, b"<Error><Code>InternalError</Code><Message>no KMS</Message></Error>"),
        lambda exchange: exchange.method == "PUT",
    )
    encrypted = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "a-key-id"}
    with pytest.raises(StemTransportError, match="SSEKMSKeyId. If this persists.*no KMS") as raised:
        land(lake, s3_extra_args=encrypted)
    assert "a-key-id" not in str(raised.value)
    with pytest.raises(StemTransportError, match="^put_object failed: HTTP"):
        land(lake)
    assert stem.requests == []


def test_a_put_that_is_forbidden_only_for_the_object_fails_without_retries(store, stem, lake):
    store.go_wrong(DENIED, lambda exchange: exchange.method == "PUT" and ".stem-probe" not in exchange.target)
    with pytest.raises(AirflowFailException, match="Access denied"):
        land(lake)
    assert lake.objects() == {}


def test_a_role_that_may_not_list_writes_new_objects_and_merges_with_old_ones(store, stem, lake):
    # Without permission to list, S3 answers 403 for a key that does not exist.
    denied = answer(403, b"", {"Date": "Thu, 26 Nov 2026 03:13:12 GMT"})
    key = "x/20250701T000000Z_all.parquet"
    store.go_wrong(
        denied, lambda exchange: exchange.method == "HEAD" and exchange.target.endswith(key) and not lake.objects()
    )
    assert land(lake)["inserted"] == 192
    assert land(lake)["unchanged"] == 192


@pytest.mark.parametrize(("batch", "is_error"), [("001-of-002", True), ("west", False), (None, False)])
def test_forbidden_listing_is_an_error_only_if_batches_are_numbered(batch, is_error, store, stem, lake):
    store.go_wrong(DENIED, lambda exchange: "list-type=2" in exchange.target)
    if is_error:
        with pytest.raises(AirflowFailException, match="Access denied"):
            land(lake, batch=batch)
        assert stem.requests == []
    else:
        assert land(lake, batch=batch)["inserted"] == 192


def test_an_object_that_may_not_be_read_fails_without_retries(store, stem, lake):
    land(lake)
    store.go_wrong(DENIED, lambda exchange: exchange.method == "GET")
    with pytest.raises(AirflowFailException, match="Access denied"):
        land(lake)


# --- wrong answers ----------------------------------------------------------------------------------------------------


def of_the_object(exchange):
    return exchange.method == "PUT" and ".stem-probe" not in exchange.target


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        (b"x-amz-checksum-sha256", b"ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="),
        (b"x-amz-checksum-sha256", b"not base64"),
        (b"etag", b'"0123456789abcdef0123456789abcdef"'),
    ],
)
def test_an_object_whose_digest_is_not_confirmed_is_read_back(name, wrong, store, stem, lake):
    def change(head, body):
        head = re.sub(rb"(?i)\r\nx-amz-checksum-sha256: [^\r]*", b"", head) if name == b"etag" else head
        return re.sub(rb"(?i)\r\n" + name + rb": [^\r]*", b"\r\n" + name + b": " + wrong, head), body

    store.go_wrong(altered(change), of_the_object)
    assert land(lake)["inserted"] == 192
    assert [target.split()[0] for target in store.targets][-2:] == ["PUT", "GET"]


@pytest.mark.parametrize("times", [1, 2, 3])
def test_an_object_that_is_stored_with_other_bytes_is_written_again(times, store, stem, lake):
    original = store._answer_from_behind

    def damaging(head, body):
        answered = original(head, body)
        if head.startswith(b"PUT") and b".stem-probe" not in head and len(writes(store)) <= times:
            return store.put(head.decode("latin-1").split()[1], body[:-1] + b"X", store.heads[-1])
        return answered

    store._answer_from_behind = damaging
    if times < 3:
        assert land(lake)["inserted"] == 192
        assert landed_rows(lake.table()) == expected_rows(stem, SITES, ["MONITOR"], 900, *DAY)
    else:
        with pytest.raises(StemTransportError, match="keeps other bytes than were sent"):
            land(lake)


@pytest.mark.parametrize(
    "date", [None, b"yesterday", b"Thu, 26 Nov 99999 03:13:12 GMT", b"Fri, 31 Dec 9999 23:59:59 GMT"]
)
def test_a_store_without_a_clock_is_an_error(date, store, stem, lake):
    def change(head, body):
        head = re.sub(rb"(?i)\r\ndate: [^\r]*", b"", head)
        return head + (b"\r\nDate: " + date if date else b""), body

    store.go_wrong(altered(change), lambda exchange: exchange.method == "HEAD")
    with pytest.raises(StemTransportError, match="no valid Date header"):
        land(lake)
    assert stem.requests == []


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_wrong_credentials_fail_at_once_and_are_named(code, store, stem, lake):
    refusal = f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode()
    store.go_wrong(answer(403, refusal, {"Content-Type": "application/xml"}), lambda exchange: exchange.method == "PUT")
    with pytest.raises(AirflowFailException, match="^The credentials are wrong. Correct access key and secret of"):
        land(lake)
    assert stem.requests == []


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_store_without_etags_is_an_error(method, store, stem, lake):
    land(lake)
    store.go_wrong(
        altered(lambda head, body: (re.sub(rb"(?i)\r\netag: [^\r]*", b"", head), body)),
        lambda exchange: exchange.method == method and ".parquet" in exchange.target,
    )
    with pytest.raises(StemTransportError, match="sends no ETag"):
        land(lake)


@pytest.mark.parametrize("token", [b"<NextContinuationToken>again</NextContinuationToken>", b""])
def test_an_endless_listing_of_the_store_is_an_error(token, store, stem, lake):
    page = b"<ListBucketResult><IsTruncated>true</IsTruncated>" + token + b"</ListBucketResult>"
    store.go_wrong(
        answer(200, page, {"Content-Type": "application/xml"}),
        lambda exchange: exchange.method == "GET" and "list-type=2" in exchange.target,
    )
    with pytest.raises(StemTransportError, match="never ends. Check the store"):
        land(lake)
    assert stem.requests == []


def test_a_store_whose_head_is_outdated_is_named(store, stem, lake):
    land(lake)
    store.go_wrong(
        altered(lambda head, body: (re.sub(rb'(?i)\r\netag: "', b'\r\netag: "f', head), body)),
        lambda exchange: exchange.method == "HEAD" and ".parquet" in exchange.target,
    )
    with pytest.raises(StemTransportError, match="HEAD and GET of the store describe different objects"):
        land(lake)


def test_an_object_that_is_later_than_the_stores_clock_is_not_overwritten(store, stem, lake):
    land(lake)
    [key] = lake.objects()
    lake.client.copy_object(
        Bucket=lake.bucket,
        Key=key,
        CopySource={"Bucket": lake.bucket, "Key": key},
        MetadataDirective="REPLACE",
        Metadata={"read-at": "2999-01-01T00:00:00+00:00"},
    )
    before = lake.objects()
    stem.reset_requests()
    with pytest.raises(StemTransportError, match=r"read at 2999-01-01T00:00:00Z.*Correct that clock, or delete"):
        land(lake)
    assert (lake.objects(), stem.requests) == (before, [])


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"batch": "001-of-002"}, {"batch": "002-of-003"}),
        ({"batch": "001-of-002"}, {}),
        ({}, {"batch": "001-of-002"}),
        ({"sites": "site-00001"}, {"batch": "001-of-002"}),
        ({"sites": "site-00001"}, {}),
        ({"batch": "001-of-002"}, {"sites": "site-00001"}),
    ],
)
@pytest.mark.parametrize("s3_key", [None, "y/{batch}/{start}.{extension}", "z/{start}-{batch}-{batch}"])
def test_another_number_of_batches_is_an_error(before, after, s3_key, stem, lake):
    from airflow_provider_stem.operators import DEFAULT_KEY

    land(lake, s3_key=s3_key or DEFAULT_KEY, **before)
    there = lake.objects()
    stem.reset_requests()
    with pytest.raises(AirflowFailException, match="every interval would be there twice. Go back to"):
        land(lake, s3_key=s3_key or DEFAULT_KEY, **after)
    assert (lake.objects(), stem.requests) == (there, [])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"batch": "001-of-002"}, {"batch": "002-of-002"}),
        ({"sites": "site-00001"}, {"sites": "site-00002"}),
        ({"batch": "west"}, {"batch": "001-of-002"}),
        ({"batch": "001-of-002"}, {"batch": "west"}),
    ],
)
def test_the_same_number_of_batches_is_not_an_error(before, after, stem, lake):
    land(lake, **before)
    land(lake, **after)
    assert len(lake.objects()) == 2


def test_other_days_may_have_other_batches(stem, lake):
    land(lake, batch="001-of-002")
    land(lake, ("2025-07-02T00:00Z", "2025-07-03T00:00Z"), batch="001-of-003")
    assert len(lake.objects()) == 2


def test_the_user_agent_names_the_operator(lake, stem, store):
    land(lake)
    assert all("caller/stemstreamstos3operator" in fields["user-agent"].lower() for fields in store.heads)
    assert store.heads
