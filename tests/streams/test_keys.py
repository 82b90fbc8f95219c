from __future__ import annotations

import re
from functools import partial
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.keys import (
    DEFAULT_KEY,
    PLACEHOLDERS,
    KeyTemplate,
    check_key_template,
)
from airflow_provider_stem.streams.tables import LANDING_SCHEMA
from airflow_provider_stem.streams.windows import Window

from .helpers import RESOLUTIONS, at, examples, seconds, tally, utc, window

DAY = window("2025-07-01", "2025-07-02")


def key_of(template: str = DEFAULT_KEY, period: Window = DAY, **values: str) -> str:
    return template_of(template, **values).key(period)


def template_of(template: str, **values: str) -> KeyTemplate:
    return KeyTemplate(
        template, **{"batch": "all", "dag_id": "dag", "task_id": "task", "extension": "parquet", **values}
    )


@st.composite
def windows(draw: st.DrawFn) -> Window:
    resolution = draw(st.sampled_from(RESOLUTIONS))
    start = draw(
        st.integers(seconds(utc("2010-01-01")), seconds(utc("2040-01-01"))) | st.just(seconds(utc("2025-07-01")))
    )
    start = start // resolution * resolution
    return Window(at(start), at(start + resolution * draw(st.integers(1, 2000) | st.just(96))), resolution)


# fmt: off
HOSTILE_IDS = [
    ".", "..", "...", "/", "//", "../..", "a/../b", "a/b", "a%2Fb", "%2E%2E", "\\", "a\\b", "date=2025-01-01", "x=y",
    "\x00", "\n", "a\rb", "\x1b[31m", "\u202e", " ", " a ", "{start}", "{{ ds }}", "s3://other/key", "?", "#", "&", "*",
    "東京", "é", "e\u0301", "a_900s_all", "_", "all",
]
# fmt: on
# Ids that Airflow and the API allow, and unusual ones.
ids = st.one_of(
    st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_.~", min_size=1, max_size=40),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    st.sampled_from(HOSTILE_IDS),
)


class TestTheDefaultKey:
    def test_has_the_date_and_all_placeholders(self) -> None:
        assert key_of(batch="007-of-032", dag_id="energy", task_id="land.all", extension="csv.gz") == (
            "stem/energy/land.all/date=2025-07-01/20250701T000000Z_20250702T000000Z_900s_007-of-032.csv.gz"
        )

    def test_two_windows_batches_or_resolutions_never_share_it(self) -> None:
        counts = tally("default key, pairs of different (window, batch, dag, task)")
        what = st.tuples(windows(), ids, ids, ids)

        @examples(1000)
        @given(st.lists(what, min_size=2, max_size=4, unique=True))
        def check(these: list[tuple[Window, str, str, str]]) -> None:
            keys = [key_of(DEFAULT_KEY, w, batch=b, dag_id=d, task_id=t) for w, b, d, t in these]
            counts.add(pairs=len(keys) * (len(keys) - 1) // 2, shared=len(keys) - len(set(keys)))
            assert len(set(keys)) == len(keys)

        check()

    @pytest.mark.parametrize("change", ["start", "end", "resolution", "batch", "dag_id", "task_id"])
    def test_every_field_is_in_the_key(self, change: str) -> None:
        other: dict[str, Any] = {
            "start": {"period": window("2025-07-01T00:15", "2025-07-02")},
            "end": {"period": window("2025-07-01", "2025-07-01T23:45")},
            "resolution": {"period": window("2025-07-01", "2025-07-02", 3600)},
        }.get(change, {change: "other"})
        assert key_of(**other) != key_of()

    def test_no_part_of_its_path_is_named_as_a_column(self) -> None:
        names = [part.split("=")[0] for part in key_of().split("/") if "=" in part]
        assert names == ["date"]
        assert not set(names) & set(LANDING_SCHEMA.names)

    @examples(300)
    @given(batch=ids, dag_id=ids, task_id=ids, of=windows())
    def test_any_id_stays_one_part(self, batch: str, dag_id: str, task_id: str, of: Window) -> None:
        key = key_of(DEFAULT_KEY, of, batch=batch, dag_id=dag_id, task_id=task_id)
        assert key.isascii()
        assert key.isprintable()
        top, dag_part, task_part, date, name = key.split("/")
        assert top == "stem"
        assert date == f"date={of.start:%Y-%m-%d}"
        assert (unquote(dag_part), unquote(task_part)) == (dag_id, task_id)
        assert not {dag_part, task_part} & {"", ".", ".."}
        assert "=" not in dag_part + task_part
        stem = f"{of.start:%Y%m%dT%H%M%SZ}_{of.end:%Y%m%dT%H%M%SZ}_{of.resolution}s_"
        assert name.startswith(stem)
        assert unquote(name.removeprefix(stem).removesuffix(".parquet")) == batch

    @pytest.mark.parametrize("name", ["batch", "dag_id", "task_id"])
    @pytest.mark.parametrize("text", ["x" * 10_000, "é" * 400, "/" * 500])
    def test_an_id_that_is_too_long_is_an_error_of_bounded_length(self, name: str, text: str) -> None:
        with pytest.raises(StemConfigError, match="at most 1,024 bytes") as error:
            key_of(DEFAULT_KEY, DAY, **{name: text})
        assert len(str(error.value)) < 500

    @pytest.mark.parametrize("name", ["batch", "dag_id", "task_id"])
    def test_an_id_that_is_not_valid_unicode_stays_one_part(self, name: str) -> None:
        key = key_of(DEFAULT_KEY, DAY, **{name: "a/\ud800"})
        assert key.count("/") == key_of().count("/")
        assert key.isascii()
        assert key.isprintable()


class TestTemplates:
    @pytest.mark.parametrize(
        ("template", "expected"),
        [
            ("x", "x"),
            ("{start}", "20250701T000000Z"),
            ("{start}/{end}", "20250701T000000Z/20250702T000000Z"),
            ("y={start:%Y}/m={start:%m}/{end:%H%M}.{extension}", "y=2025/m=07/0000.parquet"),
            ("{start:%Y/%m/%d}/f", "2025/07/01/f"),
            ("{batch}-{resolution}-{dag_id}-{task_id}", "all-900-dag-task"),
            ("{resolution:05d}", "00900"),
            ("a{{b}}", "a{b}"),
            ("a b/é", "a b/é"),
        ],
    )
    def test_placeholders_are_filled_in(self, template: str, expected: str) -> None:
        check_key_template("s3_key", template)
        assert key_of(template) == expected

    @pytest.mark.parametrize(
        "name", ["ds", "site_id", "Start", "start_date", "", "0", "start.year", "batch[0]", " start", "batch.__class__"]
    )
    def test_an_unknown_placeholder_is_an_error_that_lists_the_known_ones(self, name: str) -> None:
        for use in (partial(check_key_template, "s3_key"), key_of):
            with pytest.raises(StemConfigError, match="unknown placeholder") as error:
                use(f"stem/{{{name}}}/x.{{extension}}")
            assert all(f"{{{known}}}" in str(error.value) for known in PLACEHOLDERS)

    @pytest.mark.parametrize(
        "template",
        [
            "{{ ds }}/{start}",
            "{{ params['a'] }}/{{ macros.ds_add(ds, 1) }}-{batch}",
            "{% if x %}a{% else %}b{% endif %}/{start}",
            "{# {unknown} #}{start}",
            "{{\n ds \n}}/{end}",
            "s3://bucket/{{ var.value.prefix }}/{start:%Y}/{batch}.{extension}",
        ],
    )
    def test_jinja_is_ignored(self, template: str) -> None:
        check_key_template("s3_key", template)

    def test_jinja_hides_no_unknown_placeholder(self) -> None:
        with pytest.raises(StemConfigError, match=re.escape("{site}")):
            check_key_template("s3_key", "{{ ds }}/{site}/{{ ds }}")

    @pytest.mark.parametrize(
        "template", ["{start", "start}", "{start:{ds}}", "{resolution:%Y-q}", "{batch:d}", "{start!x}"]
    )
    def test_a_template_that_cannot_be_formatted_is_an_error(self, template: str) -> None:
        for use in (partial(check_key_template, "s3_key"), key_of):
            with pytest.raises(StemConfigError, match="s3_key"):
                use(template)

    @pytest.mark.parametrize(
        "template", ["", "/a", "a/", "a//b", ".", "..", "a/./b", "../{start}", "a/..", "{start:.}", "/"]
    )
    def test_a_key_with_an_empty_or_dotted_part_is_an_error(self, template: str) -> None:
        with pytest.raises(StemConfigError, match="s3_key renders to"):
            key_of(template)

    @pytest.mark.parametrize("template", ["a\nb", "a\x00", "a\x7f", "x" * 1025, "é" * 513, "a\u202eb"])
    def test_a_key_that_is_too_long_or_not_printable_is_an_error(self, template: str) -> None:
        with pytest.raises(StemConfigError, match="at most 1,024 bytes without control characters"):
            key_of(template)

    def test_1024_bytes_are_not_too_long(self) -> None:
        assert key_of("é" * 512) == "é" * 512


class TestCommonPrefix:
    @pytest.mark.parametrize(
        ("template", "prefix"),
        [
            (DEFAULT_KEY, "stem/dag/task"),
            ("raw/{dag_id}/{start}", "raw/dag"),
            ("raw/{dag_id}-{batch}/x", "raw"),
            ("{start}", ""),
            ("raw/x{start}", "raw"),
            ("raw/{extension}/x", "raw"),
            ("raw/fixed.parquet", "raw/fixed.parquet"),
            ("a{{b}}/{start}", "a{b}"),
        ],
    )
    def test_it_ends_before_the_first_part_that_varies(self, template: str, prefix: str) -> None:
        assert template_of(template).prefix == prefix

    @examples(300)
    @given(
        parts=st.lists(
            st.sampled_from(
                [
                    "a",
                    "b=",
                    "-",
                    "/x/",
                    "{{",
                    "/{dag_id}",
                    "{task_id}",
                    "{start}",
                    "{end:%Y}",
                    "{batch}",
                    "{resolution}",
                ]
            ),
            min_size=1,
            max_size=6,
        ),
        these=st.lists(st.tuples(windows(), ids), min_size=1, max_size=3),
        dag_id=ids,
        task_id=ids,
    )
    def test_every_key_lies_below_it(
        self, parts: list[str], these: list[tuple[Window, str]], dag_id: str, task_id: str
    ) -> None:
        template = "".join(parts)
        prefix = template_of(template, dag_id=dag_id, task_id=task_id).prefix
        for of, batch in these:
            try:
                key = key_of(template, of, batch=batch, dag_id=dag_id, task_id=task_id)
            except StemConfigError:
                continue
            assert not prefix or key == prefix or key.startswith(f"{prefix}/")
