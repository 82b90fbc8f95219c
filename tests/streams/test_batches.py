"""The batch of a site is Iceberg's own bucket of its id."""

from __future__ import annotations

import mmh3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.transforms import BucketTransform
from pyiceberg.types import StringType

from airflow_provider_stem.streams.batches import batch_index, murmur3


@given(st.binary(max_size=40))
def test_the_hash_is_murmur3(data):
    assert murmur3(data) == mmh3.hash(data, signed=False)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(1, 5_000))
def test_a_batch_is_icebergs_bucket(site_id, batches):
    assert batch_index(site_id, batches) == BucketTransform(batches).transform(StringType())(site_id)


@pytest.mark.parametrize("site_id", ["site-00001", "Zürich", "\ud800"])
def test_the_sites_of_a_batch_share_a_bucket_if_the_buckets_divide_the_batches(site_id):
    assert batch_index(site_id, 96) % 16 == batch_index(site_id, 16)
